"""Boards over SSH: the address, the host key, the connection, commands and files.

Import from the modules; ``transport.SshTransport`` is the usual door. They import paramiko, so they
are imported where a board is met and not with the command line.
"""

import logging

# without a handler Python prints paramiko's warnings; what matters is raised as an error
logging.getLogger("paramiko").addHandler(logging.NullHandler())
