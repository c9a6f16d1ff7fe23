"""
A simulation of everything at once, from a seed: docs/reliability.md says of what.

=============  ===================================================================================
C{world}       time, chance, processes
C{network}     sockets, and what a network does to them
C{disk}        files, and what disks and power cuts do to them
C{model}       what is promised, told a second time
C{actors}      the server, msglog's clients, other peers
C{recipe}      what happens, made from a seed
C{course}      a recipe carried out, and what must be so in the end
C{reduce}      a recipe made smaller
C{defects}     defects to plant, for the simulator's own tests
=============  ===================================================================================
"""
