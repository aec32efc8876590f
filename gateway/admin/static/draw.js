// Pictures of numbers. A kind is told apart by its pattern as well as by its colour: live is solid, last good hatched,
// a default dotted, an error barred.

import { drawn, element, set, widen, write } from "./dom.js";
import { KINDS, MARKS, NAMES, endless, number, percent, plural, seconds } from "./words.js";

export const SECONDS = 60;
const LAYERS = ["live", "plan-b", "error"];

/** The calls of a minute, second by second. */
export function sparkline({ height = 28, title }) {
  const paths = Object.fromEntries(LAYERS.map((layer) => [layer, drawn("path", { class: layer })]));
  const node = drawn("svg", { class: "spark", viewBox: `0 0 ${SECONDS} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": title },
    ...Object.values(paths));
  return {
    node,
    show({ spark = [], spark_degraded: degraded = [], spark_failed: failed = [] }, label) {
      const most = Math.max(4, ...spark), d = { live: "", "plan-b": "", error: "" }, from = SECONDS - spark.length;
      spark.forEach((asked, at) => {
        const ill = failed[at] || 0, helped = degraded[at] || 0;
        let y = height;
        for (const [layer, count] of [["live", Math.max(0, asked - ill - helped)], ["plan-b", helped], ["error", ill]]) {
          if (!count) continue;
          const tall = (height - 1) * Math.min(1, count / most);
          y -= tall;
          d[layer] += `M${from + at} ${y.toFixed(2)}h.82v${tall.toFixed(2)}h-.82z`;
        }
      });
      for (const layer of LAYERS) set(paths[layer], "d", d[layer]);
      set(node, "aria-label", label);
      return most;
    },
  };
}

/** A pool as a bar: its places, then its queue. The line between them is at the same spot for every upstream. */
export function poolBar() {
  const used = element("i", { class: "used" }), stuck = element("i", { class: "stuck" }), waiting = element("i", { class: "waiting" });
  const node = element("span", { class: "pool-bar", "aria-hidden": "true" },
    element("span", { class: "places" }, used, stuck), element("span", { class: "line" }, waiting));
  return {
    node,
    show({ limit, in_use, abandoned, waiting: queued, queue, peak }) {
      const places = endless(limit) ? Math.max(1, peak, in_use) : number(limit);
      const over = Math.max(places, in_use);
      widen(used, (in_use - abandoned) / over);
      widen(stuck, abandoned / over);
      widen(waiting, queued / (endless(queue) ? Math.max(20, queued) : Math.max(1, number(queue))));
      set(node, "data-full", String(in_use >= places));
      set(node, "data-queue", String(number(queue) > 0));
    },
  };
}

export function poolWords({ limit, in_use, abandoned, waiting }) {
  const stuck = abandoned ? `, ${abandoned} stuck` : "", wait = waiting ? `, ${plural(waiting, "waits", "wait")}` : "";
  return `${in_use} of ${endless(limit) ? "∞" : limit} in use${stuck}${wait}`;
}

/** How calls ended, as one bar in four patterns. */
export function shareBar() {
  const parts = Object.fromEntries(KINDS.map((kind) => [kind, element("i", { class: kind })]));
  const node = element("span", { class: "share-bar", "aria-hidden": "true" }, ...Object.values(parts));
  return { node, show(share) { for (const kind of KINDS) widen(parts[kind], share[kind]); } };
}

/** The same in words, the kinds that are there only. */
export function shareWords() {
  const parts = Object.fromEntries(KINDS.map((kind) => [kind, element("span", { class: "kind", "data-kind": kind, "data-mark": MARKS[kind], hidden: true })]));
  const node = element("span", { class: "share-words" }, ...Object.values(parts));
  return {
    node,
    show(share) {
      for (const kind of KINDS) {
        write(parts[kind], `${NAMES[kind]} ${percent(share[kind])}`);
        const there = share[kind] > 0 || (kind === "live" && KINDS.every((one) => !share[one]));
        if (parts[kind].hidden === there) parts[kind].hidden = !there;
      }
    },
  };
}

/** Lines and areas over the last minute, against a limit. `lines`: {name, class, area?}, drawn in their order. */
export function chart({ lines, height = 120, title, unit = String }) {
  const width = 600;
  const areas = lines.map((line) => drawn("path", { class: `${line.class} ${line.area ? "area" : "curve"}` }));
  const limit = drawn("path", { class: "limit" });
  const top = element("span", { class: "top number" }), limited = element("span", { class: "limited number" });
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": title }, ...areas, limit);
  const legend = element("figcaption", {}, ...lines.map((line) => element("span", { class: `legend ${line.class}` }, line.name)),
    element("span", { class: "legend limit" }, "limit"));
  const node = element("figure", { class: "chart" }, element("div", { class: "plot" }, svg, top, limited), legend);
  return {
    node,
    show(past, { least = 1, label } = {}) {
      const limits = past.map((one) => one.limit), finite = limits.filter(Number.isFinite);
      const seen = past.flatMap((one) => one.values.map((value, at) => lines[at].above ? value + one.values[at - 1] : value)).filter(Number.isFinite);
      const highest = Math.max(least, ...seen);
      // A limit far above what is seen would flatten it: it is then told in words, at the top.
      const near = finite.length && Math.max(...finite) <= 4 * highest, most = 1.08 * Math.max(highest, near ? Math.max(...finite) : 0);
      const x = (at) => width * (SECONDS - past.length + at + 1) / SECONDS, y = (value) => (height * (1 - Math.min(value, most) / most)).toFixed(1);
      lines.forEach((line, index) => {
        const base = (one) => line.above ? one.values[index - 1] : 0;
        let upper = "", lower = "", pen = "M";
        past.forEach((one, at) => {
          const value = one.values[index];
          if (!Number.isFinite(value)) { pen = "M"; return; }
          upper += `${pen}${x(at).toFixed(1)} ${y(value + base(one))}`;
          lower = `L${x(at).toFixed(1)} ${y(base(one))}${lower}`;
          pen = "L";
        });
        set(areas[index], "d", line.area && upper ? `${upper}${lower}z` : upper);
      });
      let edge = "";
      if (near) limits.forEach((value, at) => { edge += `${edge ? "L" : "M"}${x(at).toFixed(1)} ${y(value)}`; });
      set(limit, "d", edge);
      write(top, unit(most / 1.08));
      const last = limits[limits.length - 1];
      write(limited, near || last === undefined ? "" : `limit ${Number.isFinite(last) ? unit(last) : "∞"}, above the picture`);
      set(svg, "aria-label", label || title);
    },
  };
}

/** What was observed, as bars, with the limit now and the one that is suggested. */
export function histogram(bars, { now, suggested, unit, title }) {
  const width = 600, height = 130, all = bars.filter(([bound]) => Number.isFinite(number(bound)));
  const most = Math.max(1, ...all.map(([, count]) => count));
  const ends = [now, suggested].map(number).filter(Number.isFinite);
  const bounds = all.map(([bound]) => number(bound)), first = Math.min(...bounds.filter((bound) => bound > 0), ...ends.filter((end) => end > 0));
  const last = Math.max(...bounds, ...ends, 1e-6), wide = last / first > 30 && first > 0;  // then by its logarithm
  const x = (value) => width * 0.97 * (wide ? Math.log(Math.max(value, first) / first) / Math.log(last / first) : value / last);
  let d = "", before = 0;
  for (const [bound, count] of all) {
    const left = x(before), right = x(number(bound)), tall = Math.sqrt(count / most) * (height - 26);
    d += count ? `M${left.toFixed(1)} ${height}h${Math.max(1.5, right - left - 1).toFixed(1)}v${-tall.toFixed(1)}h${-Math.max(1.5, right - left - 1).toFixed(1)}z` : "";
    before = number(bound);
  }
  const mark = (value, kind, y) => {
    if (!Number.isFinite(number(value))) return [];
    const at = x(number(value)), text = drawn("text", { x: at > width * 0.6 ? at - 6 : at + 6, y, "text-anchor": at > width * 0.6 ? "end" : "start", class: kind });
    text.textContent = `${kind === "limit" ? "now" : "suggested"} ${unit(number(value))}`;
    return [drawn("path", { class: kind, d: `M${at.toFixed(1)} 0V${height}` }), text];
  };
  return drawn("svg", { class: "histogram", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title },
    drawn("path", { class: "observed", d }), ...mark(now, "limit", 12), ...mark(suggested, "suggested", 26));
}

/** The story of a call against time: one bar for each step that took any. */
export function waterfall(steps, duration) {
  const total = Math.max(duration || 0, steps.reduce((sum, step) => sum + (step.seconds || 0), 0)) || 1e-6;
  let at = 0;
  return element("ol", { class: "steps" }, ...steps.map((step) => {
    const took = step.seconds || 0, bar = element("i", { class: step.ok ? "fine" : "bad" });
    bar.style.marginLeft = `${Math.min(99, 100 * at / total)}%`;
    bar.style.width = took ? `${Math.max(0.6, Math.min(100, 100 * took / total))}%` : "0";
    at += took;
    return element("li", { "data-kind": step.kind, class: step.ok ? "fine" : "bad" },
      element("span", { class: "mark", "aria-label": step.ok ? "well" : "not well" }, step.ok ? "●" : "✕"),
      element("span", { class: "told" }, step.text),
      element("span", { class: "took number" }, step.seconds === null || step.seconds === undefined ? "" : seconds(step.seconds)),
      took ? element("span", { class: "track", "aria-hidden": "true" }, bar) : null);
  }));
}
