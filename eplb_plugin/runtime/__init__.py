"""What lives in a server: four small state machines between the end of a window and experts that lie elsewhere.

Engines call them on the same forward step on every rank; nothing here knows an engine. Who does what, and when:

Rebalancer (rebalancer.py): a model's windows become one plan that all ranks agree on.
    observe    a window has ended: a snapshot of all ranks goes into the WindowHistory of the planning rank
    decide     the planning rank forecasts and plans; its message goes to all; all vote; a no keeps the old placement
    resplit    the same for new weights on the same placement; every rank stages its tables before it votes
Cycle (cycle.py): one rebalance of all models, one after the other.
    idle -> begin -> [a model is planned -> its experts move] -> the next model ... -> idle; `step` on every step
Shuffler (migration/shuffle.py): the experts of one model move, batch by batch.
    idle -> begin -> planned -> [a batch is staged -> all vote -> all switch] ... -> idle
    a problem on any rank before a vote: refused, and what is not yet switched stays where it is
ResplitLoop (resplit_loop.py): between rebalances.
    recording -> a window ends -> solving in a thread -> some steps later all switch, or none does -> recording
    where windows are less even than planned (drift.py), the next rebalance's window begins with the switch

`model_entry.py` holds what is known of one model, `plan_codec.py` the message, `agreement.py` the vote on it,
`outcome.py` what came of it, `stage_timer.py` how long it took, `state_directory.py` what survives a restart.
"""
