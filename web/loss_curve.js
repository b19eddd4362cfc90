// Draws a loss curve: every loss faint, the smoothed loss strong, validation losses as dots.

// Middle tones, readable on light and dark themes alike.
const LINE = "#3b8eea";
const DOT = "#e08a1e";
const GRID = "rgba(128, 128, 128, 0.35)";

/** The part of the plane that the curve covers, or null when there is nothing to draw. */
export function curveRange(points, validations) {
  if (!points.length) return null;
  const first = points[0].step;
  const last = points[points.length - 1].step;
  let low = Infinity;
  let high = -Infinity;
  for (const { loss } of [...points, ...validations]) {
    if (!Number.isFinite(loss)) continue;
    low = Math.min(low, loss);
    high = Math.max(high, loss);
  }
  return { first, last, low, high };
}

/** Draws on `canvas` at the size it is shown at. */
export function drawCurve(canvas, points, validations) {
  canvas.dataset.points = points.length;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !height) return;
  // Drawn at twice the size at least, so that zooming into the graph stays sharp.
  const scale = Math.max(2, window.devicePixelRatio);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const ctx = canvas.getContext("2d");
  ctx.scale(scale, scale);

  ctx.strokeStyle = GRID;
  ctx.lineWidth = 1;
  ctx.strokeRect(0.5, 0.5, width - 1, height - 1);

  const range = curveRange(points, validations);
  if (!range) return;
  const margin = 4;
  // A constant loss or a single point has no extent of its own: put it in the middle.
  const place = (value, from, to, length) =>
    margin + (to > from ? (value - from) / (to - from) : 0.5) * (length - 2 * margin);
  const x = (step) => place(step, range.first, range.last, width);
  const y = (loss) => height - place(loss, range.low, range.high, height);

  line(ctx, points, (p) => [x(p.step), y(p.loss)], LINE, 1, 0.4);
  line(ctx, points, (p) => [x(p.step), y(p.smooth)], LINE, 2, 1);

  ctx.fillStyle = DOT;
  for (const { step, loss } of validations) {
    if (!Number.isFinite(loss)) continue;
    ctx.beginPath();
    ctx.arc(x(Math.min(Math.max(step, range.first), range.last)), y(loss), 3, 0, 2 * Math.PI);
    ctx.fill();
  }
}

function line(ctx, points, position, color, width, alpha) {
  ctx.save();
  ctx.globalAlpha = alpha;
  ctx.strokeStyle = ctx.fillStyle = color;
  ctx.lineWidth = width;
  ctx.lineJoin = "round";
  ctx.beginPath();
  for (const point of points) ctx.lineTo(...position(point));
  ctx.stroke();
  if (points.length === 1) {
    ctx.beginPath();
    ctx.arc(...position(points[0]), width, 0, 2 * Math.PI);
    ctx.fill();
  }
  ctx.restore();
}
