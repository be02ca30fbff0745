"""Sources of the agent that runs on the board: Python 3.7, packed by ``device_agents.link.zipapp``.

The modules keep their import names inside the archive, so the host can import and test them as
they are. The parent process uses the standard library only; numpy and the runtimes are imported
in child processes (:mod:`device_agents.board.child`).
"""
