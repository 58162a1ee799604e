"""Every order of events in a small mesh of real NodePolicy objects, explored breadth first, until there is no new state.

`freeze`  what two states of a node must share to count as one, and how a node is copied;
`nodes`   the states nodes were seen in, and what each event does to each;
`world`   connections, frames, clock, samples, faults: what a state of the whole is;
`rules`   what may happen next in a state, and what must hold in it;
`change`  what follows from an action;
`search`  the walk over all of it, and `tale` the shortest way to a violation, told line by line;
`cases`   the meshes and fault budgets that tests and bench explore.
"""
