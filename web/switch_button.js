// A switch. It is a button and not a checkbox: ComfyUI's undo keys do nothing while the focus is in an <input>.

import { el } from "./dom.js";

/** `role` is "switch", or "checkbox" where the state may be mixed, too. `flip(on)` is called with what the user wants. */
export function switchButton({ className, role, title, label, flip }) {
  const button = el("button", { type: "button", class: `lora-loom-switch ${className}`, role, title, "aria-label": label });
  button.addEventListener("click", () => flip(button.getAttribute("aria-checked") !== "true"));
  return button;
}

/** `state` is true, false or "mixed". */
export const showSwitch = (button, state) => button.setAttribute("aria-checked", String(state));
