"""
How fast msglog is, beside what else there is, and that it stays so: C{python -m benchmarks --help}.

For a clone of the project, not for an installed one: nothing here is in the wheel.

===========================  =====================================================================
L{_systems<_systems>}        what is measured: how each system is started, ended, and loaded
L{_rivals<_rivals>}          other systems' protocols on the core of C{msglog bench}
L{seed<benchmarks.seed>}     other ways to build the server, as servers
L{_prepared<_prepared>}      logs and ledgers as they are after years
L{_measure<_measure>}        one measurement; many in turn; medians and ratios
L{_runs<_runs>}              what commands have in common; what is kept of them
C{_compare}, C{_latency},    the commands that measure
C{_growth}, C{_generator}
L{_all<_all>}                all of these
L{_page<_page>}              docs/benchmarks.md, of page.md and what is kept
L{_charts<_charts>}          its charts
L{_cost<_cost>}              instructions a message (of C{_hot_path}), compared with cost.json
===========================  =====================================================================
"""
