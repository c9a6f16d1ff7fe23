"""
A cluster to try: nats-servers and front-ends on this machine, started, watched and ended together.

C{layout} says what is where, C{needs} whether it can be had, C{member} is one process, C{running}
is all of them, and C{control} is how another terminal asks for something.  All of it is for trials:
real clusters are run by the machines' own supervisors.
"""
