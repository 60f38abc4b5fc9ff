// The canvas: strokes, an eraser, undo, a mirror, label maps, and pictures from files or a webcam.
// It tells its listener "stroke" while a line grows, and "done" at its end.

const MOST_UNDO = 30;
const KEY_STEP = 4; // pixels that an arrow key moves the pen

export class Drawing {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.width = 4;
    this.erasing = false;
    this.label = null; // of a label map: its id and color
    this.photo = null; // a File, sent as it is
    this.past = [];
    this.last = null;
    this.pen = { x: canvas.width / 2, y: canvas.height / 2, down: false }; // of the keyboard
    this.ground = "#ffffff";
    this.clear(false);
    canvas.addEventListener("pointerdown", (event) => this.start(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.end());
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  // Fills the canvas; an empty drawing asks for no picture.
  clear(remember = true) {
    if (remember) this.remember();
    this.context.fillStyle = this.ground;
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.photo = null;
    this.empty = true;
  }

  remember() {
    const { width, height } = this.canvas;
    this.past.push({ pixels: this.context.getImageData(0, 0, width, height), photo: this.photo, empty: this.empty });
    if (this.past.length > MOST_UNDO) this.past.shift();
  }

  undo() {
    const before = this.past.pop();
    if (!before) return;
    this.context.putImageData(before.pixels, 0, 0);
    this.photo = before.photo;
    this.empty = before.empty;
    this.changed("again");
  }

  mirror() {
    this.remember();
    const copy = this.copy();
    this.context.save();
    this.context.scale(-1, 1);
    this.context.drawImage(copy, -this.canvas.width, 0);
    this.context.restore();
    this.photo = null; // what is seen is sent
    this.changed("done");
  }

  copy() {
    const copy = document.createElement("canvas");
    copy.width = this.canvas.width;
    copy.height = this.canvas.height;
    copy.getContext("2d").drawImage(this.canvas, 0, 0);
    return copy;
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * this.canvas.width) / box.width,
      y: ((event.clientY - box.top) * this.canvas.height) / box.height,
    };
  }

  start(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.remember();
    this.last = this.place(event);
    this.line(this.last, this.last, event.pressure);
  }

  move(event) {
    if (!this.last) return;
    const steps = event.getCoalescedEvents?.() ?? [];
    for (const step of steps.length ? steps : [event]) {
      const next = this.place(step);
      this.line(this.last, next, step.pressure);
      this.last = next;
    }
    this.changed("stroke");
  }

  end() {
    if (!this.last) return;
    this.last = null;
    this.changed("done");
  }

  line(from, to, pressure = 0.5) {
    if (this.photo) this.clear(false); // a stroke begins a drawing of its own
    const force = pressure > 0 ? 0.5 + pressure : 1;
    const width = this.width * (this.erasing ? 4 : this.label ? 5 : force);
    const around = [
      Math.floor(Math.min(from.x, to.x) - width), Math.floor(Math.min(from.y, to.y) - width),
      Math.ceil(Math.abs(from.x - to.x) + 2 * width) + 1, Math.ceil(Math.abs(from.y - to.y) + 2 * width) + 1,
    ];
    const before = this.labels && this.context.getImageData(...around);
    this.context.strokeStyle = this.erasing ? this.ground : this.label ? this.label.color : "#111111";
    this.context.lineWidth = width;
    this.context.lineCap = this.context.lineJoin = "round";
    this.context.beginPath();
    this.context.moveTo(from.x, from.y);
    this.context.lineTo(to.x + 0.01, to.y);
    this.context.stroke();
    if (before) this.context.putImageData(crisp(before, this.context.getImageData(...around), this.labels), around[0], around[1]);
    this.empty = false;
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === " ") {
      this.pen.down = !this.pen.down;
      if (this.pen.down) this.remember();
      else this.changed("done");
    } else if (step) {
      const from = { ...this.pen };
      this.pen.x = Math.min(Math.max(this.pen.x + step[0] * KEY_STEP, 0), this.canvas.width);
      this.pen.y = Math.min(Math.max(this.pen.y + step[1] * KEY_STEP, 0), this.canvas.height);
      if (this.pen.down) {
        this.line(from, this.pen);
        this.changed("stroke");
      }
    } else return;
    this.pen.shown?.(this.pen);
    event.preventDefault();
  }

  // Shows a picture; as a file it is sent as it is, with all of its pixels.
  async show(source, file = null) {
    const picture = source instanceof Blob ? await createImageBitmap(source) : source;
    const [width, height] = [picture.width || picture.videoWidth, picture.height || picture.videoHeight];
    this.clear(true);
    const scale = Math.min(this.canvas.width / width, this.canvas.height / height);
    const [w, h] = [width * scale, height * scale];
    this.context.drawImage(picture, (this.canvas.width - w) / 2, (this.canvas.height - h) / 2, w, h);
    this.photo = file;
    this.empty = false;
  }

  // Stands for a file that the browser cannot show, such as HEIC or TIFF; the server may read it all the same.
  name(file) {
    this.clear(true);
    this.context.fillStyle = "#888888";
    this.context.textAlign = "center";
    this.context.font = "24px sans-serif";
    this.context.fillText(file.name, this.canvas.width / 2, this.canvas.height / 2, this.canvas.width - 20);
    this.photo = file;
    this.empty = false;
  }

  // The picture to send: the file itself, the canvas, or a map of ids where labels are painted.
  async blob() {
    if (this.photo) return this.photo;
    const copy = this.copy();
    if (this.labels) {
      const context = copy.getContext("2d");
      const image = context.getImageData(0, 0, copy.width, copy.height);
      for (let at = 0; at < image.data.length; at += 4) {
        const id = nearest(this.labels, image.data[at], image.data[at + 1], image.data[at + 2]);
        image.data[at] = image.data[at + 1] = image.data[at + 2] = id;
      }
      context.putImageData(image, 0, 0);
    }
    return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
  }
}

// Browsers blend the edges of lines, and a blend of two labels' colors may be a third label's: such a pixel
// keeps the color that it had. The middle of the line has the label's color exactly.
function crisp(before, after, labels) {
  const known = new Set(labels.map(({ rgb }) => (rgb[0] << 16) | (rgb[1] << 8) | rgb[2]));
  const [old, data] = [before.data, after.data];
  for (let at = 0; at < data.length; at += 4) {
    if (!known.has((data[at] << 16) | (data[at + 1] << 8) | data[at + 2])) data.set(old.subarray(at, at + 4), at);
  }
  return after;
}

// Pictures that were dropped have colors of their own: each pixel gets the label whose color is nearest.
function nearest(labels, red, green, blue) {
  let best = 0;
  let least = Infinity;
  for (const { id, rgb } of labels) {
    const distance = (rgb[0] - red) ** 2 + (rgb[1] - green) ** 2 + (rgb[2] - blue) ** 2;
    if (distance < least) [best, least] = [id, distance];
  }
  return best;
}
