// Requests to the server: one in flight, and the newest next. What was asked for in between is dropped.

const AGAIN_MS = 1000;
export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Newest {
  constructor(ask, show, fail, busy) {
    Object.assign(this, { ask, show, fail, busy, running: false, next: null });
  }

  async send(job) {
    this.next = job;
    if (this.running) return;
    this.busy((this.running = true));
    try {
      while (this.next) {
        const current = this.next;
        this.next = null;
        try {
          const started = performance.now();
          const answer = await this.ask(current);
          this.show(answer, performance.now() - started, current);
        } catch (error) {
          this.fail(error);
          if (!error.again) continue;
          await pause(AGAIN_MS); // busy, or gone: the newest is asked for until there is an answer
          this.next ??= current;
        }
      }
    } finally {
      this.busy((this.running = false));
    }
  }
}

const token = () => new URLSearchParams(location.hash.slice(1)).get("token"); // …/#token=SECRET

async function post(path, body, accept) {
  const headers = { accept, ...(token() ? { authorization: `Bearer ${token()}` } : {}) };
  if (!(body instanceof FormData)) headers["content-type"] = "application/json";
  return answered(path, { method: "POST", headers, body });
}

// The answer, or an error that says why there is none, and whether to ask again.
async function answered(path, request) {
  const response = await fetch(path, request).catch(() => {
    throw Object.assign(new Error("the server does not answer; trying again"), { again: true });
  });
  if (response.ok) return response;
  const reason = await response.json().catch(() => ({ error: `${response.status} ${response.statusText}` }));
  throw Object.assign(new Error(reason.error), { again: response.status === 503 });
}

function form(options, pictures) {
  const body = new FormData();
  for (const [name, value] of Object.entries(options)) {
    if (value !== null && value !== undefined && value !== "") body.append(name, value);
  }
  for (const [name, blob] of Object.entries(pictures)) if (blob) body.append(name, blob);
  return body;
}

// One picture, as a blob; what the server says of it comes in headers.
export async function run(options, pictures) {
  const response = await post("/v1/run", form(options, pictures), "image/*");
  const said = [response.headers.get("x-report"), response.headers.get("x-warning")];
  return { blob: await response.blob(), report: said.filter(Boolean).join(" · ") };
}

// Several pictures, with their seeds.
export async function runAll(options, pictures) {
  const response = await post("/v1/run", form(options, pictures), "application/json");
  return asBlobs(await response.json());
}

// Pictures of seeds alone.
export async function generate(options) {
  const body = JSON.stringify(Object.fromEntries(Object.entries(options).filter(([, value]) => value !== "")));
  return asBlobs(await (await post("/v1/generate", body, "application/json")).json());
}

function asBlobs(answer) {
  return answer.results.map(({ image, seed }) => {
    const bytes = Uint8Array.from(atob(image), (letter) => letter.charCodeAt(0));
    return { seed, blob: new Blob([bytes], { type: "image/png" }) };
  });
}

export async function engines() {
  const headers = token() ? { authorization: `Bearer ${token()}` } : {};
  return (await (await answered("/v1/engines", { headers })).json()).engines;
}
