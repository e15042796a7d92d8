"""`fit` with the words given, then `test` of its best checkpoint: what two processes do with one start."""

import sys

from lightning_vos.cli import main

if __name__ == "__main__":
    main()
    sys.argv[1:2] = ["test", "--ckpt_path=best"]
    main()
