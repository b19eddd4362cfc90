// Small helpers for the widgets' DOM, and what a DOM widget owes the graph around it.

import { app } from "../../scripts/app.js";

/** An element with attributes and children; `class` and `text` are the usual shorthands. */
export function el(tag, { class: className, text, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Sets an element's text and hides it when there is none. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

/** Loads the pack's style sheet once. */
export function loadStyle() {
  const href = new URL("./lora_loom.css", import.meta.url).href;
  if (!document.querySelector(`link[href="${href}"]`)) {
    document.head.append(el("link", { rel: "stylesheet", href }));
  }
}

/** Whether the element is shown by Nodes 2.0. */
export const isVueNode = (element) => element.closest("[data-node-id]") !== null;

/** Lets the graph be zoomed and panned over `root`, and keeps the graph from taking what is meant for `root`. */
export function shareEvents(root) {
  const forward = (method) => (event) => {
    // Nodes 2.0 forwards these itself.
    if (isVueNode(root)) return;
    if (event.button === 1 || event.buttons & 4) app.canvas[method](event);
  };
  root.addEventListener("pointerdown", forward("processMouseDown"));
  root.addEventListener("pointermove", forward("processMouseMove"));
  root.addEventListener("pointerup", forward("processMouseUp"));
  root.addEventListener("wheel", (event) => {
    const scroller = event.target.closest(".lora-loom-scrolls");
    if (scroller && scroller.scrollHeight > scroller.clientHeight && !event.ctrlKey) {
      event.stopPropagation();
    } else if (!isVueNode(root)) {
      event.preventDefault();
      app.canvas.processMouseWheel(event);
    }
  });
  // Nodes 2.0 would drag the node instead of selecting text or pressing a button.
  root.addEventListener("pointerdown", (event) => {
    const meant = event.target.closest("button, input, textarea, a, .lora-loom-selectable");
    if (meant && event.button === 0) event.stopPropagation();
  });
  root.addEventListener("keydown", (event) => {
    // On a focused button these would delete the selected nodes.
    if (event.key === "Delete" || event.key === "Backspace") event.stopPropagation();
  });
  root.addEventListener("copy", (event) => {
    // Selected text is copied, not the selected nodes.
    if (String(window.getSelection())) event.stopPropagation();
  });
}

/**
 * How high a DOM widget must be, for litegraph, which cannot ask CSS.
 * `parts` are the elements whose height is their own; `fixed()` is what is needed besides. `measure()` gives whether the height has changed.
 */
export function followHeight(node, root, parts, fixed, initial) {
  let height = initial;
  const measure = () => {
    // Out of view or not mounted yet, nothing has a height.
    if (!root.getClientRects().length) return false;
    const needed = parts.reduce((sum, part) => sum + part.offsetHeight, 0) + fixed();
    if (needed === height) return false;
    height = needed;
    // Nodes 2.0 grow by themselves.
    if (!isVueNode(root)) node.expandToFitContent();
    node.graph?.setDirtyCanvas(true, true);
    return true;
  };
  const observer = new ResizeObserver(measure);
  for (const part of parts) observer.observe(part);
  return { height: () => height, measure };
}

/** Calls `added`/`removed` when `node`, whose widget is `root`, enters and leaves a graph. */
export function onGraph(node, root, added, removed) {
  chain(node, "onAdded", () => {
    added();
    requestAnimationFrame(() => requestAnimationFrame(() => replaceStale(node, root)));
  });
  chain(node, "onRemoved", removed);
}

// Undo makes new nodes with the old ids, and Nodes 2.0 (frontend 1.32) then go on showing the old
// node's element. Waits two frames, so that Vue has mounted what it is going to mount.
function replaceStale(node, root) {
  if (root.isConnected) return;
  const shown = document.querySelector(`[data-node-id="${CSS.escape(node.id)}"]`);
  shown?.querySelector(`.${root.classList[0]}`)?.replaceWith(root);
}

/** Adds a callback to one node's own hook, keeping the one that is there. */
export function chain(node, hook, callback) {
  const before = node[hook];
  node[hook] = function (...args) {
    const result = before?.apply(this, args);
    callback.apply(this, args);
    return result;
  };
}
