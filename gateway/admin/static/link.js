// The line to the server: what is asked of it, and the stream of what it tells once a second.
//
// The stream is read with fetch, not EventSource, which cannot send a token; and the token is never part of an
// address, where logs and histories would keep it. It lives in the tab's session and dies with it.

import { News } from "./news.js";

const TOKEN = "gateway-token", OPERATOR = "gateway-operator";
const SILENT_FOR = 3500, GIVE_UP_AFTER = 8000, AGAIN = [500, 1000, 2000, 4000];

export const operator = {
  get name() { return localStorage.getItem(OPERATOR) || ""; },
  set name(text) { text ? localStorage.setItem(OPERATOR, text) : localStorage.removeItem(OPERATOR); },
};
export const token = {
  get known() { return Boolean(sessionStorage.getItem(TOKEN)); },
  use(text) { text ? sessionStorage.setItem(TOKEN, text.trim()) : sessionStorage.removeItem(TOKEN); },
};

/** What the server refused, in its own words. */
export class Refusal extends Error {
  constructor(status, content) {
    super(content?.errors?.map(({ problem, remedy }) => `${problem}; ${remedy}`).join("\n") || `the server answers ${status}`);
    this.status = status;
    this.errors = content?.errors || [];
    this.content = content;
  }
}

function headers(more) {
  const told = { "X-Gateway-Page": "1", ...more }, secret = sessionStorage.getItem(TOKEN);
  if (secret) told.Authorization = `Bearer ${secret}`;
  return told;
}

export const named = (name) => `upstreams/${encodeURIComponent(name)}`;

export async function ask(path, { method = "GET", body, etag, why } = {}) {
  const more = {};
  if (method !== "GET") {
    more["Content-Type"] = "application/json";
    // Headers carry Latin-1 only; names and reasons are whatever people write.
    if (operator.name) more["X-Gateway-Operator"] = encodeURIComponent(operator.name);
    if (why) more["X-Gateway-Reason"] = encodeURIComponent(why);
  }
  if (etag) more["If-Match"] = etag;
  const response = await fetch(path, {
    method, headers: headers(more), cache: "no-store", redirect: "error", signal: AbortSignal.timeout(GIVE_UP_AFTER),
    body: method === "GET" ? undefined : JSON.stringify(body ?? {}),
  });
  const text = await response.text();
  let content = null;
  try { content = text ? JSON.parse(text) : null; } catch { /* not JSON: the status has to do */ }
  if (!response.ok) throw new Refusal(response.status, content);
  return { content, etag: response.headers.get("ETag") };
}

/** Follow the stream for ever, from the first `open`. `told` gets what is known, `changed` how the line is: live, lost, or locked. */
export class Line {
  constructor({ told, changed }) {
    this.told = told;
    this.changed = changed;
    this.details = null;
    this.heard = 0;
    this.failures = 0;
    this.reading = null;
    this.waiting = null;
    document.addEventListener("visibilitychange", () => document.hidden ? this.rest() : this.again());
    setInterval(() => this.watch(), 500);
  }

  /** Have the details of this upstream told, too; of none: "". */
  open(name) {
    if (this.details === name) return;
    this.details = name;
    if (!document.hidden) this.again();
  }

  /** A tab that nobody sees costs the server nothing. */
  rest() {
    clearTimeout(this.waiting);
    this.reading?.abort();
    this.reading = null;
  }

  again() {
    this.rest();
    this.read(this.reading = new AbortController());
  }

  watch() {
    if (document.hidden || !this.reading || !this.heard || performance.now() - this.heard < SILENT_FOR) return;
    this.changed("lost");
    if (performance.now() - this.heard > GIVE_UP_AFTER && !this.waiting) this.again();
  }

  async read(mine) {
    this.waiting = null;
    try {
      const news = new News(), response = await fetch(`live?details=${encodeURIComponent(this.details)}`, { headers: headers({ Accept: "text/event-stream" }), cache: "no-store", signal: mine.signal });
      if (response.status === 401 || response.status === 403) return this.changed("locked", response.status);
      if (!response.ok) throw new Error(`the server answers ${response.status}`);
      for await (const text of events(response.body)) {
        const content = news.hear(JSON.parse(text));
        if (!content) continue;
        this.heard = performance.now();
        this.failures = 0;
        this.changed("live");
        this.told(content);
      }
      throw new Error("the server ended the stream");
    } catch {
      if (mine !== this.reading) return;  // we ended it ourselves
      this.changed("lost");
      this.waiting = setTimeout(() => this.again(), AGAIN[Math.min(this.failures++, AGAIN.length - 1)]);
    }
  }
}

/** The data of server-sent events, one text for each. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "", data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (pending + value).split(/\r\n|\n/);
    pending = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      else if (!line && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}
