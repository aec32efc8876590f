// Numbers as people read them, and what they say of an upstream. Nothing here knows the page.

export const KINDS = ["live", "last_good", "default", "error"];
export const MARKS = { live: "●", last_good: "◐", default: "◇", error: "✕" };
export const NAMES = { live: "live", last_good: "last good", default: "default", error: "error" };
export const CIRCUITS = {
  closed: ["●", "closed", "calls go through"],
  open: ["◯", "open", "nothing is sent"],
  half_open: ["◑", "half-open", "a few calls try whether it is well again"],
  isolated: ["■", "isolated", "switched off by hand"],
};
export const ENDPOINTS = {
  up: ["●", "in turn"], healthy: ["●", "in turn"], ramping: ["◑", "comes back"], ejected: ["◯", "left alone"],
  down: ["◯", "down"], gone: ["✕", "gone"], draining: ["◔", "draining"], drained: ["■", "drained"],
};
export const LEVELS = [["●", "well"], ["◐", "helped out"], ["▲", "strained"], ["✕", "ill"]];

export const endless = (value) => value === "inf" || value === Infinity;
export const number = (value) => endless(value) ? Infinity : Number(value);

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (endless(value)) return "∞";
  if (value === 0) return "0 ms";
  if (value < 0.001) return `${Math.max(1, Math.round(value * 1e6))} µs`;
  if (value < 0.01) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 99.95) return `${value.toFixed(1)} s`;
  return long(value);
}

export function long(value) {
  if (value < 100) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  if (value < 129600) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} days`;
}

export function rate(value) {
  if (!value) return "0";
  if (value < 9.95) return value.toFixed(1);
  return value < 9999.5 ? grouped(Math.round(value)) : `${(value / 1000).toFixed(1)} k`;
}

export const grouped = (value) => endless(value) ? "∞" : String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
export const plural = (count, one, many = `${one}s`) => `${grouped(count)} ${count === 1 ? one : many}`;
export const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour12: false });

const collator = new Intl.Collator("en", { numeric: true });
/** a-2 before a-10. */
export const inOrder = (one, other) => collator.compare(one, other);
export const linkTo = (name) => `#/upstreams/${encodeURIComponent(name)}`;

/** A share that is there is never shown as 0 %, and one that is not whole never as 100 %. */
export function percent(share) {
  if (!share) return "0 %";
  if (share >= 1) return "100 %";
  if (share < 0.01) return "< 1 %";
  return `${Math.min(99, Math.round(share * 100))} %`;
}

/** A value of a knob as it stands in a policy file. */
export function spelled(value) {
  if (value === null || value === undefined) return "none";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** How calls ended, in the four kinds a caller can tell apart. A refusal is an answer: the upstream said no. */
export function ends(counts) {
  return {
    live: counts.live + counts.coalesced + counts.cached + counts.refused,
    last_good: counts.last_good,
    default: counts.static + counts.handler + counts.alternate,
    error: counts.failed + counts.unknown + counts.rejected,
  };
}

export function shares(counts) {
  const ended = ends(counts), total = KINDS.reduce((sum, kind) => sum + ended[kind], 0);
  return Object.fromEntries(KINDS.map((kind) => [kind, total ? ended[kind] / total : 0]));
}

export const kindOf = (source, outcome) =>
  source === null || source === undefined ? (outcome === "refused" ? "live" : "error")
    : source === "last_good" ? "last_good" : ["static", "handler", "alternate"].includes(source) ? "default" : "live";

/** How ill an upstream is, from 0 to 3, and the one thing to say about it. The worst comes first. */
export function judged(upstream) {
  const { circuit, pool, window: { rates }, endpoints, circuits = [] } = upstream, share = shares(rates);
  if (!upstream.adds_up) return { level: 3, reason: "its numbers do not add up" };
  if (circuit.state === "open") {
    return { level: 3, reason: circuit.closes_in > 0.05 ? `circuit open, tries in ${circuit.closes_in.toFixed(1)} s` : "circuit open, tries with the next call" };
  }
  if (share.error >= 0.05) return { level: 3, reason: `${percent(share.error)} of callers get an error` };
  if (circuit.state === "isolated") return { level: 2, reason: "isolated by hand" };
  if (circuit.state === "half_open") return { level: 2, reason: "half-open: a few calls try it" };
  if (pool.abandoned) return { level: 2, reason: `${plural(pool.abandoned, "place")} stuck` };
  if (share.error) return { level: 2, reason: `${percent(share.error)} of callers get an error` };
  if (pool.waiting) return { level: 2, reason: `pool full, ${plural(pool.waiting, "caller waits", "callers wait")}` };
  const own = circuits.filter(({ state }) => state !== "closed").length;
  if (own) return { level: 1, reason: `${plural(own, "circuit")} of its own not closed` };
  if (share.last_good + share.default) return { level: 1, reason: `${percent(share.last_good + share.default)} from plan B` };
  const out = (endpoints || []).filter(({ state }) => !["up", "healthy"].includes(state)).length;
  if (out) return { level: 1, reason: `${plural(out, "endpoint")} of ${endpoints.length} out` };
  if (rates.retries) return { level: 0, reason: "well, with retries" };
  return { level: 0, reason: rates.asked ? "well" : "nobody asks" };
}
