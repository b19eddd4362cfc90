// What a node works with: its own settings and those of every node that leads to it, out of a saved workflow.

/** The origin of links that come from a subgraph's own input. */
const SUBGRAPH_INPUT = -10;

/**
 * The settings of the node at `path` ("3", or "5:3" for node 3 in the subgraph of node 5) as a text that is the same for the same
 * settings, wherever the nodes stand and whatever their ids are; null if there is no such node.
 */
export function settingsOf(workflow, path) {
  const subgraphs = new Map((workflow.definitions?.subgraphs ?? []).map((graph) => [graph.id, graph]));
  const ids = String(path).split(":");
  const graphs = [workflow];
  for (const id of ids.slice(0, -1)) graphs.push(subgraphs.get(nodeOf(graphs.at(-1), id)?.type));
  if (graphs.includes(undefined) || !nodeOf(graphs.at(-1), ids.at(-1))) return null;

  const found = [];
  const places = new Map();
  /** The place in `found` of a node at a depth of the path. `whole`: with what is in its subgraph, if it is one. */
  const place = (depth, id, whole) => {
    const key = `${depth}:${id}`;
    if (places.has(key)) return places.get(key);
    const at = found.push(null) - 1;
    places.set(key, at);
    const graph = graphs[depth];
    const node = nodeOf(graph, id);
    const inputs = linkedInputs(graph, node).map(({ name, origin, slot }) => {
      const above = origin === SUBGRAPH_INPUT && depth > 0;
      return [name, slot, above ? place(depth - 1, ids[depth - 1], false) : place(depth, origin, true)];
    });
    found[at] = [settings(node), inputs, whole ? contents(node, subgraphs) : null];
    return at;
  };
  place(graphs.length - 1, ids.at(-1), true);
  return JSON.stringify(found);
}

const nodeOf = (graph, id) => graph?.nodes?.find((node) => String(node.id) === String(id));

const settings = (node) => node && [node.type, node.mode ?? 0, node.widgets_values ?? []];

/** Everything in the subgraph of `node`; null if it is none. */
function contents(node, subgraphs) {
  const graph = subgraphs.get(node?.type);
  return graph ? graph.nodes.map((each) => [each.id, settings(each), linkedInputs(graph, each), contents(each, subgraphs)]) : null;
}

function linkedInputs(graph, node) {
  const linked = (node?.inputs ?? []).filter((input) => input.link != null);
  return linked.map(({ name, link }) => ({ name, ...originOf(graph, link) })).sort((a, b) => (a.name < b.name ? -1 : 1));
}

// A workflow's own links are lists, those of subgraphs are objects.
function originOf(graph, id) {
  const link = graph.links.find((each) => (each.id ?? each[0]) === id);
  return { origin: link?.origin_id ?? link?.[1], slot: link?.origin_slot ?? link?.[2] };
}
