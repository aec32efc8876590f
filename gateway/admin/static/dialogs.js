// Questions before something is done, the token, and the list of keys.

import { element } from "./dom.js";
import { CIRCUITS, KINDS, LEVELS, MARKS, NAMES } from "./words.js";
import { operator, token } from "./link.js";

function open(dialog) {
  const before = document.activeElement;
  document.body.append(dialog);
  dialog.addEventListener("close", () => { dialog.remove(); before?.isConnected && before.focus(); });
  dialog.showModal();
}

/** Ask before something is done: resolves with {why} or, if it is not to be, with null. */
export function confirmed({ title, text, deed, detail, danger = false }) {
  return new Promise((resolve) => {
    const why = element("input", { type: "text", maxlength: 200, "aria-label": "Why", placeholder: "for those who look later" });
    const who = element("input", { type: "text", maxlength: 60, value: operator.name, "aria-label": "Your name", placeholder: "kept in this browser" });
    let answer = null;
    const dialog = element("dialog", { class: "ask", "aria-label": title },
      element("form", {
        onsubmit: (event) => {
          event.preventDefault();
          operator.name = who.value.trim();
          answer = { why: why.value.trim() };
          dialog.close();
        },
      },
      element("h2", {}, title), element("p", {}, text), detail,
      element("label", {}, element("span", {}, "Why"), why), element("label", {}, element("span", {}, "Your name"), who),
      element("p", { class: "choices" },
        element("button", { type: "button", onclick: () => dialog.close() }, "Leave it"),
        element("button", { type: "submit", class: danger ? "danger" : "well", autofocus: true }, deed))));
    dialog.addEventListener("close", () => resolve(answer));
    open(dialog);
  });
}

let asking = null;

/** Ask for a token, once, however many requests were turned away. */
export function askToken(status, then) {
  if (asking) return;
  const field = element("input", { type: "password", autocomplete: "off", required: true, autofocus: true, "aria-label": "Token" });
  asking = element("dialog", { class: "ask", "aria-label": "Token" },
    element("form", { onsubmit: (event) => { event.preventDefault(); token.use(field.value); asking.close(); then(); } },
      element("h2", {}, "A token is needed"),
      element("p", {}, token.known || status === 403
        ? "The one this tab has is not taken. It may be wrong, or may not do this."
        : "This server is looked at with a token: one that may look, or one that may also change. It stays in this tab, and ends with it."),
      element("label", {}, element("span", {}, "Token"), field),
      element("p", { class: "choices" }, element("button", { type: "submit", class: "well" }, "Use it"))));
  asking.addEventListener("close", () => { asking = null; });
  open(asking);
}

const KEYS = [
  ["j k", "next, previous upstream"], ["Enter", "open it"], ["/", "find by name"], ["Esc", "back; end a search"],
  ["v", "cards, rows, wall"], ["s", "order: worst first, by name, by traffic"], ["w", "why: recent calls and their stories"],
  ["c", "changes: who tuned what"], ["t", "light, dark, as the system"], ["?", "this list"],
];

/** Keys, and what the marks mean. */
export function help() {
  const close = () => dialog.close();
  const row = (term, text, attributes = {}) => [element("dt", attributes, term), element("dd", {}, text)];
  const dialog = element("dialog", { class: "ask help", "aria-label": "Keys and marks" },
    element("h2", {}, "Keys"),
    element("dl", {}, ...KEYS.flatMap(([keys, text]) => [element("dt", {}, ...keys.split(" ").map((key) => element("kbd", {}, key))), element("dd", {}, text)])),
    element("h2", {}, "Marks"),
    element("dl", { class: "marks" },
      ...KINDS.flatMap((kind) => row(`${MARKS[kind]} ${NAMES[kind]}`, {
        live: "the upstream answered, or a call just like it had", last_good: "remembered: true a while ago",
        default: "a default, a handler or another upstream", error: "the caller got an error",
      }[kind], { "data-kind": kind, class: "kind" })),
      ...Object.entries(CIRCUITS).flatMap(([, [mark, name, meaning]]) => row(`${mark} ${name}`, `circuit: ${meaning}`)),
      ...LEVELS.slice(1).flatMap(([mark, name], at) => row(`${mark} ${name}`, [
        "callers are answered, some by plan B", "callers wait, are turned away, or some get an error", "the circuit is open, or many callers get an error"][at]))),
    element("p", { class: "choices" }, element("button", { type: "button", class: "well", autofocus: true, onclick: close }, "Close")));
  open(dialog);
}
