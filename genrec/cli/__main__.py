from genrec.cli.main import main

main()
