// The server's routes for runs; `nodes/routes.py` answers.

import { api } from "../../scripts/api.js";

/** A run cannot be stopped because it is not running. */
export class NotRunning extends Error {}

/** {runs}, newest first; null without a connection. */
export const getRuns = () => getJson("/lora_loom/runs");

/** {run, events, curve, workflow}; null without a connection, or if there is no such run. */
export const getRun = (id) => getJson(`/lora_loom/runs/${encodeURIComponent(id)}`);

/** Asks the trainer to save and leave. Throws NotRunning, or another error that says what the server answered. */
export async function postStop(id) {
  const response = await api.fetchApi(`/lora_loom/runs/${encodeURIComponent(id)}/stop`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ save: true }),
  });
  if (response.status === 409) throw new NotRunning("This run is no longer running.");
  if (!response.ok) throw new Error(`The server answered ${response.status}.`);
}

async function getJson(route) {
  try {
    const response = await api.fetchApi(route);
    return response.ok ? await response.json() : null;
  } catch {
    return null; // No connection: "reconnected" asks again.
  }
}
