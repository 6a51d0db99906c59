"""Ray itself and the processes around it: nothing here knows of stages.

`service` starts Ray or joins it, and ends it; `keeper` is the thread it is started in; `joining` finds out about a
cluster that somebody else has started; all that is asked of Ray goes through `calls`. `register` and `processes` know
the workers on this machine.
"""
