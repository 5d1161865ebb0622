import sys

from genrec.cli.main import main

sys.exit(main())
