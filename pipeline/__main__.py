"""``python -m pipeline`` is ``hilnas``; torchrun takes modules: ``torchrun ... -m pipeline``."""

from pipeline.cli.main import main

if __name__ == "__main__":
    main()
