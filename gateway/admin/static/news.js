// What is known of all upstreams, from what the server tells: all of it at first, then what is another since the
// message before. A row leaves out rates that are 0; the details of the upstream that is open come beside the rows.

const SECONDS = 60, LINES = 100, SPARKS = ["spark", "spark_degraded", "spark_failed"];
const STILL = Object.fromEntries(["asked", "attempts", "retries", "overran", "live", "coalesced", "cached", "last_good",
  "static", "handler", "alternate", "refused", "failed", "unknown", "rejected", "cancelled"].map((name) => [name, 0]));

export class News {
  constructor() {
    this.told = null;
    this.opened = null;
  }

  /** What is known now; null for a message that tells nothing by itself. */
  hear(message) {
    if (message.opened) {
      this.opened = message.opened;
      return null;
    }
    this.told = message.after === undefined ? { ...message, upstreams: message.upstreams.map(filled) } : merged(this.told, message);
    const { opened } = this;
    this.opened = null;  // it comes with each message
    return opened ? { ...this.told, upstreams: this.told.upstreams.map((row) => row.name === opened.name ? { ...row, ...opened } : row) } : this.told;
  }
}

const filled = (row) => ({ ...row, window: { ...row.window, rates: { ...STILL, ...row.window.rates } } });

function merged(told, { upstreams, events, ...around }) {
  if (!told || told.number !== around.after) throw new Error("a message is missing");
  const moved = new Map(upstreams.map((row) => [row.name, row]));
  const rows = told.upstreams.map((row) => {
    const now = moved.get(row.name);
    moved.delete(row.name);
    return now ? { ...filled({ ...row, ...now }), ...slid(row, now.second, now) } : { ...row, ...slid(row, around.second) };
  });
  return { ...around, upstreams: [...rows, ...[...moved.values()].map(filled)], events: [...told.events, ...events].slice(-LINES) };
}

/** Its sparklines up to that second: the last ones as they are told, and nothing was asked in those before that were not. */
function slid(row, second, told = null) {
  if (!told && second <= row.second) return {};
  const lines = { second };
  for (const spark of SPARKS) {
    const last = told ? told[spark] : [], gap = second - last.length - row.second;
    lines[spark] = [...row[spark].slice(0, gap < 0 ? gap : undefined), ...Array(Math.max(0, gap)).fill(0), ...last].slice(-SECONDS);
  }
  return lines;
}
