"""``python -m fsm`` is the command ``slotkeeper``."""

from fsm.cli import main

raise SystemExit(main())
