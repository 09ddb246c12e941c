"""The rule `exact`: even ranks in every single step, from that step's own counts.

Every rank learns how many selections of every replicated expert all ranks have in this step, solves the same integer
quotas, and gives its own tokens to replicas by ordinal. No weight moves and no random number is drawn.

replicas.py  what a placement offers: which experts have replicas on several ranks, in which order they are visited
quotas.py    how many selections every replica serves: the busiest rank as light as can be, then as few wishes broken
wishes.py    on which node a selection would like to be served
rows.py      which of them are one source's, by prefix sums over sources; every rank needs its own row only
step.py      `route_step`: wishes, counts, quotas and rows of one step of all ranks: the reference
tables.py    what one rank reads of a placement, on its device
kernels.py   one rank's part of a step: `count`, then, with what all ranks counted, `choose`
"""
