// A field for a number, with keys for finer steps.

import { el } from "./dom.js";

/**
 * The arrow keys change the number by `step`, with Shift by `fine`. `get()` is the number, `set(number)` takes each one that is
 * typed; `done()` is called when the field is done with.
 */
export function numberField({ label, title = label, className = "", min, max, step, fine, get, set, done }) {
  const input = el("input", { class: `lora-loom-number ${className}`, type: "number", min, max, step, title, "aria-label": label });
  input.value = get();
  input.addEventListener("input", () => {
    // Half-typed numbers ("-", "1e") are no value yet.
    if (Number.isFinite(input.valueAsNumber)) set(Math.max(min, Math.min(max, input.valueAsNumber)));
  });
  input.addEventListener("change", () => {
    input.value = get();
    done();
  });
  input.addEventListener("focus", () => input.select());
  input.addEventListener("keydown", (event) => {
    const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!direction) return;
    event.preventDefault();
    event.stopPropagation();
    const by = event.shiftKey ? fine : step;
    // Sums of decimal steps: 0.15 + 0.05 is to be 0.2.
    const next = Number((get() + direction * by).toFixed(6));
    set(Math.max(min, Math.min(max, next)));
    input.value = get();
    done();
  });
  return input;
}
