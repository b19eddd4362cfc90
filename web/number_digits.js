// Numbers on the nodes, with all their digits and no more.

/**
 * Shows every digit that the number `widget` can have, without zeros at the end.
 *
 * Nodes 2.0 (frontend 1.32) gives numbers no decimals on a node that is dragged in, and three on one that is loaded: 0.15 that is typed becomes 1,
 * and 0.0001 reads 0. The canvas shows as many as the step has. What an input is rounded to says how many it needs.
 */
export function showAllDigits(widget) {
  const finest = Number(widget.options?.round) || Number(widget.options?.step2);
  const digits = finest < 1 ? Math.ceil(-Math.log10(finest) - 1e-9) : 0;
  if (!(digits > 0)) return;
  Object.assign(widget.options, { precision: digits, maxFractionDigits: digits });
  // What the canvas draws.
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get: () => (widget.computedDisabled ? "" : Number(widget.value).toFixed(digits).replace(/\.?0+$/, "")),
  });
}
