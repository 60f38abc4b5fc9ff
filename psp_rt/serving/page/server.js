// Requests to the server: one in flight, and the newest next. What was asked for in between is dropped.

export class Newest {
  constructor(ask, show, fail) {
    Object.assign(this, { ask, show, fail, running: false, next: null });
  }

  async send(job) {
    this.next = job;
    if (this.running) return;
    this.running = true;
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
        }
      }
    } finally {
      this.running = false;
    }
  }
}

const token = () => new URLSearchParams(location.hash.slice(1)).get("token"); // …/#token=SECRET

async function post(path, body, accept) {
  const headers = { accept, ...(token() ? { authorization: `Bearer ${token()}` } : {}) };
  if (!(body instanceof FormData)) headers["content-type"] = "application/json";
  const response = await fetch(path, { method: "POST", headers, body });
  if (response.ok) return response;
  const reason = await response.json().catch(() => ({ error: response.statusText }));
  throw new Error(reason.error);
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
  const response = await fetch("/v1/engines", { headers });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer.engines;
}
