// How the run widget words what it shows.

import { isOver } from "./run_state.js";

const TURN = { queued: "Queued", starting: "Starting" };
const STATUS = { finished: "Finished", stopped: "Stopped", failed: "Failed", interrupted: "Interrupted", stopping: "Stopping…" };

/** What the run is doing, without numbers: this is read aloud when it changes. `turn`: as in `turnOf`; `changed`: with other settings than now. */
export function phaseName(state, turn, changed) {
  if (turn) return TURN[turn];
  if (!state) return "Not run yet";
  if (changed) return "Settings changed since the last run";
  if (STATUS[state.status]) return STATUS[state.status];
  return sentence(state.phase?.name ?? "starting");
}

/** How far the phase is, or what the run made. */
export function phaseDetail(state, turn, changed) {
  if (!state || turn) return "";
  if (isOver(state)) {
    const saved = state.adapter ? `saved as ${fileName(state.adapter)}` : "";
    return changed ? `(${[STATUS[state.status].toLowerCase(), saved].filter(Boolean).join(", ")})` : saved;
  }
  const { done, total, detail } = state.phase ?? {};
  return [total > 0 ? `${done} of ${total}` : "", detail].filter(Boolean).join(" · ");
}

/** The share of the steps that is done, before the first one that of the phase; null when neither can be told. */
export function share(state) {
  if (isOver(state)) return null;
  const { done, total } = state.phase ?? {};
  if (total > 0 && !(state.rate > 0)) return done / total;
  return state.total > 0 ? state.step / state.total : null;
}

/** How long there is still to go; `ofPhase`: until the end of the phase only. */
export function remainingText(state, { remaining, ofPhase }) {
  if (remaining === null) return "";
  return `${ofPhase ? `${state.phase.name.replaceAll("_", " ")}: ` : ""}${duration(remaining)} left`;
}

/** How many steps were not taken, and why; only fp16 overflows. */
export function skippedText({ skipped, precision }) {
  if (!(skipped > 0)) return "";
  const why = precision === "fp16" ? "fp16 overflow" : "the loss or its gradient was not a number";
  return `${skipped} ${skipped === 1 ? "step" : "steps"} skipped: ${why}`;
}

/** The loss of a validation, and that of each dataset where there are several. */
export function validationText(validation) {
  if (!validation) return "";
  const { step, loss, byDataset } = validation;
  const each = eachDataset(byDataset);
  return `Validation loss ${lossText(loss)} at step ${step}${each && `: ${each}`}`;
}

/** All validations, a line for each. */
export function validationTitle(validations) {
  const line = ({ step, loss }, each) => `${step}: ${lossText(loss)}${each && ` (${each})`}`;
  return validations.map((validation) => line(validation, eachDataset(validation.byDataset))).join("\n");
}

const eachDataset = (losses) => Object.entries(losses).map(([name, loss]) => `${lossText(loss)} on ${name}`).join(", ");

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
