"""python -m brain"""

from brain.cli import main

main()
