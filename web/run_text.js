// How the run widget words what it shows.

import { isOver } from "./run_state.js";

const STATUS = { finished: "Finished", stopped: "Stopped", failed: "Failed", stopping: "Stopping…" };

/** What the run is doing, without numbers: this is read aloud when it changes. */
export function phaseName(state) {
  if (!state) return "Not run yet";
  if (STATUS[state.status]) return STATUS[state.status];
  return sentence(state.phase?.name ?? "starting");
}

/** How far the phase is, or what the run made. */
export function phaseDetail(state) {
  if (!state) return "";
  if (isOver(state)) return state.adapter ? `saved as ${fileName(state.adapter)}` : "";
  const { done, total, detail } = state.phase ?? {};
  return [total > 0 ? `${done} of ${total}` : "", detail].filter(Boolean).join(" · ");
}

/** The share of the work that is done, or null when it cannot be told. */
export function share(state) {
  if (isOver(state)) return null;
  const { done, total } = state.phase ?? {};
  if (total > 0) return done / total;
  return state.total > 0 ? state.step / state.total : null;
}

/** 75 -> "1:15", 3675 -> "1:01:15" */
export function duration(seconds) {
  const s = Math.round(seconds);
  const two = (n) => String(n).padStart(2, "0");
  const minutes = Math.floor(s / 60);
  return minutes < 60 ? `${minutes}:${two(s % 60)}` : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(s % 60)}`;
}

/** A loss in four characters or so; JSON has no NaN, so the server sends null for one. */
export const lossText = (loss) => (Number.isFinite(loss) ? Number(loss.toPrecision(3)).toString() : "not a number");

export const rateText = (rate) => `${Number(rate.toPrecision(2))} steps/s`;

export const learningRateText = (rate) => `${rate.toExponential(2).replace(/\.?0+e/, "e")}`;

/** The last part of a path of either kind of system. */
export const fileName = (path) => path.split(/[\\/]/).pop();

function sentence(name) {
  const words = name.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
