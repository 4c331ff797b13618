"""Proofs about a Spec, by exploring all that it allows.

A node of the exploration is a state, the facts that hold and the operations that are under way. An
edge is an event that can happen there: an answer to an operation, an error of one, a timer that is
set, the host's word. What is assumed of the world stands in the file: an operation gives one of its
declared ``answers`` or an error, and an event that is ``paced_by`` a timer takes that long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fsm.machine.spec import INITIAL, STATES, Row, Spec, State, Timer

FLOOR: Final = 0.1
"""Seconds: a shorter delay counts as none."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One event, taken."""

    source: State
    event: str
    dest: State
    row: str
    delayed: bool
    """At least the floor passes before it, or the host has to speak."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A proof that does not hold, with the shortest path that shows it."""

    proof: str
    what: str
    path: tuple[Edge, ...]

    def __str__(self) -> str:
        return f"{self.proof}: {self.what}\n    {walk(self.path)}"


@dataclass(frozen=True, slots=True)
class _Node:
    state: State
    facts: frozenset[str]
    pending: frozenset[str]


def walk(path: Sequence[Edge]) -> str:
    """Write a path as ``Acquiring --error_wait--> Acquiring``."""
    if not path:
        return "(nowhere)"
    return path[0].source + "".join(f" --{edge.event}--> {edge.dest}" for edge in path)


def verify(spec: Spec) -> list[Finding]:
    """Try all proofs; give what does not hold."""
    graph = _explore(spec)
    return [
        *_loops(graph),
        *_broken_requirements(spec, graph),
        *_unreachable(graph),
        *_deaf_to_stop(graph),
    ]


class _Graph:
    """All reachable nodes, with a shortest way to each."""

    def __init__(self) -> None:
        self.edges: dict[_Node, list[tuple[Edge, _Node]]] = {}
        self.way: dict[_Node, tuple[Edge, ...]] = {}


def _explore(spec: Spec) -> _Graph:
    graph = _Graph()
    start = _Node(INITIAL, frozenset(), frozenset())
    graph.way[start] = ()
    queue = deque([start])
    while queue:
        node = queue.popleft()
        graph.edges[node] = list(_edges(spec, node))
        for edge, target in graph.edges[node]:
            if target not in graph.way:
                graph.way[target] = (*graph.way[node], edge)
                queue.append(target)
    return graph


def _edges(spec: Spec, node: _Node) -> Iterator[tuple[Edge, _Node]]:
    for event, delayed in _possible(spec, node):
        for row in spec.rows(node.state, event):
            if row.when is None or row.when.met_by(node.facts):
                yield _take(spec, node, event, row, delayed=delayed)
                break


def _possible(spec: Spec, node: _Node) -> Iterator[tuple[str, bool]]:
    """Yield the events that can happen at a node, and whether time passes before each."""
    for name, event in spec.events.items():
        if event.sender == "host":
            yield name, True
        elif event.sender == "classifier" and node.pending:
            yield name, False
        elif event.sender == "session" and _is_answer(spec, name, node):
            yield name, event.paced_by is not None
    for timer in spec.states[node.state].timers.values():
        if timer.when is None or timer.when.met_by(node.facts):
            yield timer.trigger, _shortest(spec, timer) >= FLOOR
            if timer.exhausted is not None:
                yield timer.exhausted, False


def _is_answer(spec: Spec, event: str, node: _Node) -> bool:
    return any(event in (spec.actions[action].answers or ()) for action in node.pending)


def _shortest(spec: Spec, timer: Timer) -> float:
    if timer.policy is not None and timer.exhausted is None and _budgets_end(spec):
        return 0.0  # nothing else is triggered when the budget is spent
    if timer.policy is not None:
        return min(
            policy.of_class(error_class).shortest()
            for policy in spec.policies.values()
            for error_class in ("", *policy.by_class)
        )
    if isinstance(timer.after, float):
        return timer.after * (1 - timer.shorten)
    return float("inf")


def _budgets_end(spec: Spec) -> bool:
    return any(
        policy.of_class(error_class).is_limited
        for policy in spec.policies.values()
        for error_class in ("", *policy.by_class)
    )


def _take(spec: Spec, node: _Node, event: str, row: Row, *, delayed: bool) -> tuple[Edge, _Node]:
    dest = row.lands_in(node.state)
    facts = set(node.facts) | set(spec.events[event].sets)
    for action in row.do:
        facts -= set(spec.actions[action].clears)
    kept = (
        set()
        if row.dest
        else {a for a in node.pending if event not in (spec.actions[a].answers or ())}
    )
    asked = {action for action in row.do if spec.actions[action].answers is not None}
    target = _Node(dest, frozenset(facts), frozenset(kept | asked))
    proves_work = "work_proven" in spec.events[event].sets
    return Edge(node.state, event, dest, row.id, delayed or proves_work), target


def _loops(graph: _Graph) -> Iterator[Finding]:
    """Find the shortest cycle that no delay slows down."""
    best: tuple[Edge, ...] | None = None
    for node in graph.edges:
        cycle = _shortest_undelayed_cycle(graph, node)
        if cycle is not None and (best is None or len(cycle) < len(best)):
            best = cycle
    if best is not None:
        yield Finding(
            "no loop without a delay", "this goes round as fast as the server answers", best
        )


def _shortest_undelayed_cycle(graph: _Graph, start: _Node) -> tuple[Edge, ...] | None:
    queue: deque[tuple[_Node, tuple[Edge, ...]]] = deque([(start, ())])
    seen = {start}
    while queue:
        node, path = queue.popleft()
        for edge, target in graph.edges[node]:
            if edge.delayed:
                continue
            if target == start:
                return (*path, edge)
            if target not in seen:
                seen.add(target)
                queue.append((target, (*path, edge)))
    return None


def _broken_requirements(spec: Spec, graph: _Graph) -> Iterator[Finding]:
    found: set[tuple[State, str]] = set()
    for node, way in graph.way.items():
        for fact in spec.states[node.state].requires:
            if fact not in node.facts and (node.state, fact) not in found:
                found.add((node.state, fact))
                yield Finding("a state's requirements hold", f"{node.state} without {fact}", way)


def _unreachable(graph: _Graph) -> Iterator[Finding]:
    reached = {node.state for node in graph.edges}
    for state in STATES:
        if state not in reached:
            yield Finding("every state is reachable", f"nothing leads to {state}", ())


def _deaf_to_stop(graph: _Graph) -> Iterator[Finding]:
    """Find the states that ``stop`` does not leave for Idle."""
    found: set[State] = set()
    for node, edges in graph.edges.items():
        stops = any(edge.event == "stop" and edge.dest == INITIAL for edge, _ in edges)
        if node.state != INITIAL and not stops and node.state not in found:
            found.add(node.state)
            what = f"stop does not lead from {node.state} to {INITIAL}"
            yield Finding("every state can be stopped", what, graph.way[node])
