// A text field with a list of choices under it (the ARIA combobox pattern). One list serves the whole page: it hangs on the
// page's body, in the browser's top layer, so that no node clips it and no zoom makes it unreadable.

import { el } from "./dom.js";

/** So many choices are made at once; more follow when the list is scrolled. */
const CHUNK = 100;
const MIN_WIDTH = 260;
const MAX_HEIGHT = 320;
const GAP = 2;

const list = el("div", { id: "lora-loom-choices", class: "lora-loom-choices", role: "listbox", popover: "manual", "aria-label": "Choices" });
/** The field that the list belongs to: {input, settings, query, choices, active}. */
let open = null;
let frame = 0;

/**
 * Offers choices in `input`.
 *
 * `settings` are
 * - choices(query): [{value, text, before, after}]; before and after are shown dimmed around the text,
 * - current(): the value that is set,
 * - shown(value): how the field shows it while it does not have the focus,
 * - settle(text): what typed text means when it is left without a choice; null: nothing, the value stays,
 * - set(value).
 */
export function offerChoices(input, settings) {
  let typed = false;
  let focused = false;
  const display = () => (input.value = focused ? settings.current() : settings.shown(settings.current()));
  // What is set is marked in the list until something is typed.
  const show = (query) => showList(input, settings, query, typed ? null : settings.current());
  const set = (value) => {
    typed = false;
    closeList(input);
    if (value !== null && value !== settings.current()) settings.set(value);
    display();
  };
  const leave = () => set(typed ? settings.settle(input.value.trim()) : null);

  const attributes = { role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", autocomplete: "off", spellcheck: "false" };
  for (const [name, value] of Object.entries(attributes)) input.setAttribute(name, value);
  display();
  input.addEventListener("focus", () => {
    focused = true;
    display();
    input.select();
  });
  input.addEventListener("click", () => {
    if (open?.input === input) return;
    input.select();
    show("");
  });
  input.addEventListener("input", () => {
    typed = true;
    show(input.value);
  });
  input.addEventListener("blur", () => {
    focused = false;
    leave();
  });
  input.addEventListener("lora-loom-chosen", (event) => set(event.detail));
  input.addEventListener("keydown", (event) => {
    const isOpen = open?.input === input;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!isOpen) show(typed ? input.value : "");
      else activate(open.active + (event.key === "ArrowDown" ? 1 : -1));
    } else if (event.key === "Enter") {
      if (isOpen && open.active >= 0) set(open.choices[open.active].value);
      else leave();
      // With Ctrl it queues the graph, which is not ours to stop.
    } else if (event.key === "Escape" && (isOpen || typed)) {
      // Not for the graph, which would leave a subgraph.
      event.stopPropagation();
      set(null);
    }
  });
}

/** Brings the open list up to date when the choices have changed. */
export function refreshChoices() {
  if (!open) return;
  const { input, settings, query, choices, active } = open;
  showList(input, settings, query, choices[active]?.value);
}

function showList(input, settings, query, marked) {
  const choices = settings.choices(query);
  const wasOpen = open?.input === input;
  if (open && !wasOpen) closeList(open.input);
  if (!choices.length) return closeList(input);
  open = { input, settings, query, choices, active: -1 };
  list.replaceChildren();
  addChunk();
  if (!wasOpen) {
    if (!list.isConnected) document.body.append(list);
    input.setAttribute("aria-controls", list.id);
    input.setAttribute("aria-expanded", "true");
    list.showPopover();
    follow();
  }
  list.scrollTop = 0;
  const same = choices.findIndex((choice) => choice.value === marked);
  activate(same < 0 && query.trim() ? 0 : same);
}

function closeList(input) {
  if (open?.input !== input) return;
  open = null;
  cancelAnimationFrame(frame);
  input.setAttribute("aria-expanded", "false");
  input.removeAttribute("aria-activedescendant");
  list.hidePopover();
}

function addChunk() {
  const from = list.children.length;
  list.append(...open.choices.slice(from, from + CHUNK).map((choice, i) => option(choice, from + i)));
}

function option({ value, text, before = "", after = "" }, index) {
  const dimmed = (part) => el("span", { class: "lora-loom-choice-dim", text: part });
  const attributes = { id: `lora-loom-choice-${index}`, class: "lora-loom-choice", role: "option", "aria-selected": "false", title: value };
  return el("div", attributes, dimmed(before), text, dimmed(after));
}

function activate(index) {
  list.children[open.active]?.setAttribute("aria-selected", "false");
  open.active = Math.max(-1, Math.min(index, open.choices.length - 1));
  if (open.active < 0) return open.input.removeAttribute("aria-activedescendant");
  while (list.children.length <= open.active) addChunk();
  const chosen = list.children[open.active];
  chosen.setAttribute("aria-selected", "true");
  chosen.scrollIntoView({ block: "nearest" });
  open.input.setAttribute("aria-activedescendant", chosen.id);
}

// The graph may be moved and zoomed under an open list, and the field may go away.
function follow() {
  if (!open) return;
  const { input } = open;
  if (!input.isConnected) return closeList(input);
  const box = input.getBoundingClientRect();
  const width = Math.max(MIN_WIDTH, box.width);
  const below = window.innerHeight - box.bottom;
  const upwards = below < MAX_HEIGHT && box.top > below;
  const room = (upwards ? box.top : below) - 2 * GAP;
  list.style.minWidth = `${width}px`;
  list.style.maxHeight = `${Math.max(60, Math.min(MAX_HEIGHT, room))}px`;
  list.style.left = `${Math.max(0, Math.min(box.left, window.innerWidth - list.offsetWidth))}px`;
  list.style.top = upwards ? "auto" : `${box.bottom + GAP}px`;
  list.style.bottom = upwards ? `${window.innerHeight - box.top + GAP}px` : "auto";
  frame = requestAnimationFrame(follow);
}

// The field keeps the focus: leaving it would close the list.
list.addEventListener("mousedown", (event) => event.preventDefault());
list.addEventListener("click", (event) => {
  const index = [...list.children].indexOf(event.target.closest(".lora-loom-choice"));
  if (index >= 0) open?.input.dispatchEvent(new CustomEvent("lora-loom-chosen", { detail: open.choices[index].value }));
});
list.addEventListener("scroll", () => {
  if (open && list.scrollTop + 2 * list.clientHeight > list.scrollHeight) addChunk();
});
