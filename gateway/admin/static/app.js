// The page: which part of it is shown, what the keys do, how the line to the server is.

import { byId, set, typing, write } from "./dom.js";
import { Line, Refusal } from "./link.js";
import { askToken, help } from "./dialogs.js";
import { LEVELS, inOrder, linkTo, plural } from "./words.js";
import { Overview, verdict } from "./overview.js";
import { Past, UpstreamPage } from "./upstream.js";
import { Audit } from "./audit.js";
import { Why } from "./why.js";

const THEMES = ["as the system", "light", "dark"];

/** What was chosen in this browser. */
const settings = new Proxy({}, {
  get: (_, name) => localStorage.getItem(`gateway-${name}`),
  set: (_, name, value) => { localStorage.setItem(`gateway-${name}`, value); return true; },
});
const past = new Past(), overview = new Overview({ settings });
let told = null, part = null, spoken = "";

// -- what is shown

function route() {
  const path = location.hash.replace(/^#\/?/, ""), [first, second] = path.split("/");
  part?.end?.();
  let name = "overview";
  if (first === "upstreams" && second) {
    name = "upstream";
    line.open(decoded(second));
    part = new UpstreamPage({ name: decoded(second), past, refused, said: say });
  } else if (first === "why") part = new Why({ refused }), name = "why";
  else if (first === "audit") part = new Audit({ refused }), name = "audit";
  else part = overview;
  if (name !== "upstream") line.open("");
  byId("main").replaceChildren(part.node);
  document.documentElement.dataset.route = name;
  for (const link of document.querySelectorAll("[data-route].tool")) set(link, "aria-current", link.dataset.route === name ? "page" : null);
  if (told) part.show?.(told);
  scrollTo(0, 0);
}

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

function show(content) {
  told = content;
  past.keep(content);
  const { level, text } = verdict(content), mark = LEVELS[level][0];
  set(byId("verdict"), "data-level", String(level));
  set(byId("verdict"), "data-mark", mark);
  write(byId("verdict"), text);
  if (document.title !== `${mark} Gateway`) document.title = `${mark} Gateway`;
  const broken = content.upstreams.filter((upstream) => !upstream.adds_up).map(({ name }) => name);
  byId("broken").hidden = content.gateway.adds_up && !broken.length;
  write(byId("broken"), byId("broken").hidden ? "" : `✕ Numbers do not add up${broken.length ? `: ${broken.slice(0, 5).join(", ")}` : ""}. Asked is not live, plan B, errors, cancelled and in flight together (promise 10). Please report it.`);
  // Screen readers hear of a change, not of every second.
  const state = content.upstreams.map(({ name, circuit }) => `${name} ${circuit.state}`).join();
  if (state !== spoken) { spoken = state; write(byId("spoken"), text.replace(/, tries .*? s/, "")); }
  part.show?.(content);
}

function say(text) {
  write(byId("spoken"), text);
}

/** The server said no. What needs a token asks for one; what a person did is answered in words. */
function refused(error, byHand = false) {
  if (error instanceof Refusal && error.status === 401) return askToken(401, () => { line.again(); route(); });
  if (!byHand) return;
  const text = error instanceof Refusal
    ? error.status === 403 ? `Not allowed: ${error.message}` : `Not done: ${error.message}`
    : "The server did not answer; whether it was done is not known.";
  byId("lost").hidden = false;
  write(byId("lost"), `${text} (Esc closes this.)`);
  byId("lost").dataset.hand = "1";
}

// -- the line

let lostAt = null;
function changed(state, status) {
  if (state === "locked") askToken(status, () => line.again());
  if (state === "live") {
    if (lostAt !== null && !byId("lost").dataset.hand) byId("lost").hidden = true;
    lostAt = null;
  } else lostAt ??= Date.now();
  set(document.documentElement, "data-line", state);
  set(byId("line"), "data-state", state);
  write(byId("line"), { live: "live", lost: "connection lost", locked: "locked" }[state]);
  if (state === "lost") tellLost();
}
function tellLost() {
  if (lostAt === null || document.documentElement.dataset.line !== "lost") return;
  byId("lost").hidden = false;
  delete byId("lost").dataset.hand;
  const since = told ? `These numbers are ${plural(Math.round(Math.max(1, Date.now() / 1000 - told.at)), "second")} old` : "No number was ever heard";
  write(byId("lost"), `◯ Connection to the server lost. ${since}; trying again.`);
}
setInterval(tellLost, 1000);

// -- light and dark

function theme(next) {
  if (next) settings.theme = THEMES[(THEMES.indexOf(settings.theme || THEMES[0]) + 1) % THEMES.length];
  const chosen = settings.theme || THEMES[0];
  if (chosen === THEMES[0]) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  write(byId("theme"), { light: "☀ light", dark: "☾ dark" }[chosen] || "◐ auto");
  byId("theme").setAttribute("aria-label", `Colours: ${chosen}`);
}

// -- keys

function neighbour(by) {
  if (!(part instanceof UpstreamPage) || !told) return;
  const names = told.upstreams.map(({ name }) => name).sort(inOrder), at = names.indexOf(part.name);
  const next = names[(at + by + names.length) % names.length];
  if (next) location.hash = linkTo(next);
}
const KEYS = {
  j: () => part === overview ? overview.move(1) : neighbour(1),
  k: () => part === overview ? overview.move(-1) : neighbour(-1),
  "/": () => { if (part !== overview) { location.hash = "#/"; route(); } overview.find(); },
  v: () => part === overview && overview.view.click(),
  s: () => part === overview && overview.order.click(),
  w: () => { location.hash = "#/why"; },
  c: () => { location.hash = "#/audit"; },
  t: () => theme(true),
  "?": help,
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (byId("lost").dataset.hand) { byId("lost").hidden = true; delete byId("lost").dataset.hand; }
    else if (part === overview) overview.escape();
    else if (typing(document.activeElement)) document.activeElement.blur();
    else location.hash = "#/";
    return;
  }
  if (event.key === "Enter" && event.target.id === "search") return overview.move(1);
  if (typing(event.target)) return;
  const deed = KEYS[event.key];
  if (!deed) return;
  event.preventDefault();
  deed();
});

byId("theme").addEventListener("click", () => theme(true));
byId("help").addEventListener("click", help);
addEventListener("hashchange", route);
theme(false);
const line = new Line({ told: show, changed });
route();
