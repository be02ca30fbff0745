"""First code of the agent on a board: secures stdout, checks the Python, hands over.

Parses with the grammar of Python 3.6, so that an old interpreter hears a sentence and not a
SyntaxError. Native libraries may print to fd 1, so the protocol keeps a private copy of it and
fd 1 becomes stderr before anything else is imported.
"""

import os
import sys


def main() -> int:
    """Run the agent (or, with ``--child``, one round). Returns the exit status."""
    protocol = os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)
    if sys.version_info < (3, 7):
        protocol.write(
            '{{"v":1,"id":null,"ok":false,"error":{{"code":"BOOTSTRAP","blames":"board","message":'
            '"the agent needs Python 3.7 or newer, this is {}.{}"}}}}\n'.format(
                sys.version_info[0], sys.version_info[1]
            ).encode("ascii")
        )
        return 3
    if sys.argv[1:2] == ["--child"]:
        from device_agents.board.child import main as run_child

        return run_child(protocol)
    from device_agents.board.agent import main as run_agent

    return run_agent(protocol, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
