"""Import what programs usually import, so that the board's Python has its files compiled.

Debian's packages do that when they are set up; here nothing but unpacking happened.
"""

import importlib

NAMES = """
argparse ast base64 bisect collections concurrent.futures contextlib copy csv ctypes dataclasses
datetime difflib email.message email.parser enum errno fcntl functools glob gzip hashlib
importlib.metadata importlib.resources inspect io itertools json logging math mmap numbers operator
os pathlib pickle platform pprint queue random re resource secrets select selectors shlex shutil
signal socket sqlite3 stat statistics string struct subprocess sysconfig tarfile tempfile textwrap
threading time timeit traceback types typing unittest.case urllib.parse urllib.request uuid warnings
weakref zipfile zipimport zlib
"""

for name in NAMES.split():
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(error)
