// The points of a loss curve: each loss with the average up to it, thinned evenly where there are many.

/** Points kept of a loss curve. */
export const MAX_POINTS = 2000;

/** No points yet; losses up to `lossStep` are not to be added. */
export function emptyCurve(lossStep) {
  return { points: [], stride: 1, lossStep, average: { value: 0, weight: 0, step: lossStep } };
}

/** `state` with [step, loss] pairs added, which are told up to `lossStep`. */
export function addLosses(state, pairs, lossStep) {
  const points = state.points.slice();
  // Diffusion losses scatter widely: smooth over a fiftieth of the run, within reason.
  const span = Math.min(50, Math.max(5, state.total / 50));
  let { average, stride } = state;
  for (const [step, loss] of pairs) {
    if (!Number.isFinite(loss)) continue;
    average = averageWith(average, step, loss, span);
    const point = { step, loss, smooth: average.value / average.weight };
    const last = points.length - 1;
    // The newest point is always shown; if it is too near to the one before, the next replaces it.
    if (last > 0 && points[last].step - points[last - 1].step < stride) points[last] = point;
    else points.push(point);
  }
  while (points.length > MAX_POINTS) {
    stride *= 2;
    points.splice(0, points.length, ...thinned(points, stride));
  }
  return { ...state, points, stride, average, lossStep };
}

// An exponential average that is right from the first value on (weight corrects the start)
// and where a gap of n steps fades the past as n steps would.
function averageWith({ value, weight, step: before }, step, loss, span) {
  const decay = weight ? Math.exp(-Math.max(1, step - before) / span) : 0.5;
  return { value: decay * value + (1 - decay) * loss, weight: decay * weight + (1 - decay), step };
}

function thinned(points, stride) {
  const kept = [];
  for (const point of points) {
    if (!kept.length || point.step - kept.at(-1).step >= stride) kept.push(point);
  }
  if (kept.at(-1) !== points.at(-1)) kept.push(points.at(-1));
  return kept;
}
