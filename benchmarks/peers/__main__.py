"""`python dev.py bench peers`"""

from benchmarks.peers.command import main

if __name__ == "__main__":
    main()
