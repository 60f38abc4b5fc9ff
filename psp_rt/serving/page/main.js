// The page: what is drawn goes to the server, and the newest result is shown beside it.

import { Drawing } from "./canvas.js";
import { Newest, engines, generate, pause, run, runAll } from "./server.js";

const $ = (id) => document.getElementById(id);
const VARIANTS = 8;
const STEPS = 7; // between two pictures
const MOST_HISTORY = 24;
const WEBCAM_MS = 120; // at least, between two frames

let known = [];
let result = null; // the newest: a blob
let second = null; // a File whose style is mixed in
let camera = null;

const engine = () => known.find(({ name }) => name === $("engine").value);
const drawing = new Drawing($("canvas"), (when) => changed(when));
const live = new Newest(ask, show, fail, (busy) => $("result").setAttribute("aria-busy", busy));

// What the controls say.

function layers() {
  const count = engine().num_styles;
  // The paper's split of 18 layers: 1-3 coarse, 4-7 middle, 8-18 fine.
  const [coarse, middle] = [Math.max(1, Math.round(count / 6)), Math.max(2, Math.round((count * 7) / 18))];
  const ranges = { coarse: `1-${coarse}`, middle: `${coarse + 1}-${middle}`, fine: `${middle + 1}-`, all: "1-" };
  return ranges[$("layers").value] ?? "";
}

function options() {
  const mixes = $("seed").value !== "" || second;
  const truncation = Number($("truncation").value);
  return {
    engine: engine().name,
    seeds: second && engine().input ? "" : $("seed").value,
    layers: mixes ? layers() : "",
    alpha: mixes ? $("alpha").value : "",
    truncation: truncation < 1 ? truncation : "",
    from_photo: $("from-photo").checked && engine().task === "sketch" ? "true" : "",
    // Lines on the page's white ground are as the model expects; a file may be a photo of paper.
    clean: engine().task === "sketch" && !drawing.photo && !$("from-photo").checked ? "false" : "",
  };
}

// The live result.

async function ask(job) {
  if (!engine().input) {
    const [made] = await generate({ engine: job.engine, seeds: [Number(job.seeds)], truncation: job.truncation });
    return { ...made, report: `seed ${made.seed}` };
  }
  const picture = await drawing.blob();
  return { ...(await run(job, { image: picture, style_from: second })), photo: Boolean(drawing.photo) };
}

function show({ blob, report }, milliseconds) {
  result = blob;
  swap($("result"), blob);
  $("result").alt = `Result of ${engine().name}`;
  say(`${Math.round(milliseconds)} ms${report ? ` · ${report}` : ""}`);
}

function swap(image, blob) {
  const before = image.src;
  image.src = URL.createObjectURL(blob);
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function fail(error) {
  say(error.message, true);
}

function changed(when) {
  $("hint").hidden = !drawing.empty;
  $("palette").hidden = !drawing.labels;
  if (!engine() || (drawing.empty && engine().input)) return;
  live.send(options());
  if (when === "done" && !camera) remember();
}

// History: a click brings the drawing back.

function remember() {
  const past = document.createElement("button");
  past.type = "button";
  past.title = "Bring this drawing back";
  const thumbnail = document.createElement("img");
  thumbnail.alt = `Drawing ${$("history").children.length + 1}`;
  const copy = drawing.copy();
  const { photo, empty } = drawing;
  copy.toBlob((blob) => (thumbnail.src = URL.createObjectURL(blob)));
  past.append(thumbnail);
  past.addEventListener("click", () => {
    drawing.remember();
    drawing.context.drawImage(copy, 0, 0);
    Object.assign(drawing, { photo, empty });
    changed("again");
  });
  $("history").prepend(past);
  while ($("history").children.length > MOST_HISTORY) $("history").lastChild.remove();
}

// Variants: other seeds; between both: the second picture mixed in more and more.

async function fill(makers, chosen) {
  $("grid").replaceChildren();
  try {
    for (const [number, made] of (await makers).entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = chosen.title(made, number);
      const image = document.createElement("img");
      image.alt = button.title;
      swap(image, made.blob);
      button.append(image);
      button.addEventListener("click", () => chosen.use(made, number));
      $("grid").append(button);
    }
  } catch (error) {
    fail(error);
  }
}

async function variants() {
  const first = Math.floor(Math.random() * 1e6);
  const seeds = Array.from({ length: VARIANTS }, (_, number) => first + number);
  const asked = { ...options(), alpha: $("alpha").value, layers: layers() };
  const chosen = {
    title: ({ seed }) => `Seed ${seed}`,
    use: ({ seed, blob }) => {
      $("seed").value = seed;
      forget();
      if (engine().input && !drawing.empty) live.send(options());
      else show({ blob, report: `seed ${seed}` }, 0);
    },
  };
  if (drawing.empty || !engine().input) {
    const { engine: name, truncation } = asked;
    await fill(generate({ engine: name, seeds, truncation }), chosen);
  } else {
    await fill(runAll({ ...asked, seeds: seeds.join(",") }, { image: await drawing.blob() }), chosen);
  }
}

async function between() {
  const image = await drawing.blob();
  const made = [];
  for (let step = 0; step < STEPS; step++) {
    const alpha = step / (STEPS - 1);
    const [one] = await runAll({ ...options(), layers: layers() || "1-", alpha }, { image, style_from: second });
    made.push({ ...one, alpha });
  }
  await fill(made, {
    title: ({ alpha }) => `${Math.round(alpha * 100)} % of the second picture`,
    use: ({ alpha }) => {
      $("alpha").value = alpha;
      update($("alpha"));
      live.send(options());
    },
  });
}

// Pictures from files, the clipboard and a webcam.

async function open(file) {
  if (!file) return;
  try {
    await drawing.show(file, file);
  } catch {
    drawing.name(file);
  }
  changed("done");
}

async function webcam() {
  if (camera) {
    for (const track of camera.srcObject.getTracks()) track.stop();
    camera = null;
  } else {
    try {
      if (!navigator.mediaDevices) throw new Error("browsers give it to https pages and localhost only");
      const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
      camera = Object.assign(document.createElement("video"), { srcObject: stream, muted: true });
      await camera.play();
      look(camera);
    } catch (error) {
      fail(new Error(`no webcam: ${error.message}`));
    }
  }
  $("webcam").setAttribute("aria-pressed", String(Boolean(camera)));
}

async function look(from) {
  while (camera === from) {
    const started = performance.now();
    if (!live.running) {
      await drawing.show(camera);
      drawing.past.pop(); // frames are nothing to undo
      changed("frame");
    }
    await pause(Math.max(20, WEBCAM_MS - (performance.now() - started)));
  }
}

function forget() {
  second = null;
  $("second").value = "";
  $("forget").hidden = true;
  $("between").disabled = true;
}

// Labels: the ids of a map, each with a color.

function paint(count) {
  drawing.labels = count ? Array.from({ length: count }, (_, id) => ({ id, rgb: colorOf(id, count) })) : null;
  drawing.label = null;
  drawing.ground = count ? css(drawing.labels[0].rgb) : "#ffffff";
  $("palette").replaceChildren();
  $("palette").hidden = !count;
  for (const { id, rgb } of drawing.labels ?? []) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: String(id), title: `Label ${id}` });
    button.setAttribute("role", "radio");
    button.style.borderColor = css(rgb);
    button.addEventListener("click", () => choose(id));
    $("palette").append(button);
  }
  if (count) choose(1 % count);
}

function choose(id) {
  drawing.label = { id, color: css(drawing.labels[id].rgb) };
  for (const [number, button] of [...$("palette").children].entries()) {
    button.setAttribute("aria-checked", String(number === id));
    button.setAttribute("aria-pressed", String(number === id));
  }
}

const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

function colorOf(id, count) {
  if (id === 0) return [0, 0, 0]; // the background
  const hue = (id * 360) / count;
  const channel = (shift) => {
    const at = (shift + hue / 60) % 6;
    return Math.round(230 * (1 - 0.78 * Math.max(0, Math.min(at, 4 - at, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}

// The command line that does the same.

function command() {
  const said = options();
  const parts = ["psp-rt run", `${said.engine}.engine`, drawing.photo?.name ?? "drawing.png", "-o result.png"];
  if (second) parts.push(`--style-from ${second.name}`);
  if (said.seeds) parts.push(`--seeds ${said.seeds}`);
  if (said.layers) parts.push(`--layers ${said.layers}`);
  if (said.alpha && Number(said.alpha) < 1) parts.push(`--alpha ${said.alpha}`);
  if (said.truncation) parts.push(`--truncation ${said.truncation}`);
  if (said.from_photo) parts.push("--from-photo");
  if (said.clean === "false") parts.push("--no-clean");
  return parts.join(" ");
}

function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Controls.

function tool(erasing) {
  drawing.erasing = erasing;
  $("pen").setAttribute("aria-pressed", String(!erasing));
  $("eraser").setAttribute("aria-pressed", String(erasing));
}

function update(range) {
  range.parentElement.querySelector("output").textContent = range.value;
}

function choseEngine() {
  const { task, input, output, runs_on: where, default_layers: own } = engine();
  const wants = { gray: "drawings", labels: "label maps", rgb: "pictures" }[input?.kind] ?? "nothing: seeds alone";
  $("about").textContent = `${task}, ${output.width}×${output.height}, takes ${wants} · ${where.replace(/ \(.*/, "")}`;
  $("about").title = where;
  $("layers").options[0].textContent = `${own} (this engine's)`;
  $("drawn-row").hidden = task !== "sketch";
  const hints = { rgb: "Drop a photo here.", labels: "Paint labels here, or drop a map." };
  const hint = input ? (hints[input.kind] ?? "Draw a face here, or drop a picture.") : "Takes no picture: choose a seed.";
  $("hint").textContent = hint;
  paint(input?.kind === "labels" ? input.labels : 0);
  drawing.clear();
  changed("engine");
}

const clicks = {
  pen: () => tool(false),
  eraser: () => tool(true),
  undo: () => drawing.undo(),
  clear: () => { drawing.clear(); $("hint").hidden = false; },
  mirror: () => drawing.mirror(),
  open: () => $("file").click(),
  webcam,
  variants,
  between,
  dice: () => { $("seed").value = Math.floor(Math.random() * 1e6); forget(); changed("style"); },
  forget: () => { forget(); changed("style"); },
  download: () => result && download(result, "result.png"),
  "as-command": async () => {
    const copied = await navigator.clipboard?.writeText(command()).then(() => true, () => false);
    say(`${copied ? "copied: " : ""}${command()}`); // plain http from another machine has no clipboard
  },
  "as-input": async () => { if (result) await open(new File([result], "result.png", { type: result.type })); },
};
for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
$("width").addEventListener("input", () => (drawing.width = Number($("width").value)));
$("file").addEventListener("change", () => open($("file").files[0]));
$("engine").addEventListener("change", choseEngine);
for (const id of ["seed", "layers", "from-photo"]) $(id).addEventListener("input", () => changed("style"));
for (const id of ["alpha", "truncation"]) {
  $(id).addEventListener("input", () => { update($(id)); changed("style"); });
}
$("second").addEventListener("change", () => {
  second = $("second").files[0] ?? null;
  $("forget").hidden = !second;
  $("between").disabled = !second;
  if (second) $("seed").value = "";
  changed("style");
});
for (const type of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(type, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", type === "dragover");
    if (type === "drop") open(event.dataTransfer.files[0]);
  });
}
addEventListener("paste", (event) => open(event.clipboardData.files[0]));
addEventListener("keydown", (event) => {
  if (event.target.matches("input, select")) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "z") drawing.undo();
  else if (event.key === "p" && !event.ctrlKey && !event.metaKey) tool(false);
  else if (event.key === "e" && !event.ctrlKey && !event.metaKey) tool(true);
});

drawing.pen.shown = ({ x, y, down }) => {
  const cursor = Object.assign($("cursor"), { hidden: false });
  cursor.style.left = `${(100 * x) / drawing.canvas.width}%`;
  cursor.style.top = `${(100 * y) / drawing.canvas.height}%`;
  cursor.classList.toggle("down", down);
};
$("canvas").addEventListener("blur", () => ($("cursor").hidden = true));

while (!known.length) {
  try {
    known = await engines();
    for (const { name } of known) $("engine").append(new Option(name, name));
    say("");
    choseEngine();
  } catch (error) {
    fail(error);
    if (!error.again) break;
    await pause(1000);
  }
}
