"""What the command line starts: `python -m raylink.ray agents|submit|state|follow|stop|driver`.

`agents` is described in agents.py, `driver` in system.py; the others, which are about jobs, in jobs.py.
"""

import sys


def main():
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "agents":
        from . import agents

        sys.exit(agents.main())
    if command == "driver":
        from . import system

        system.drive(sys.argv[2], sys.argv[3], sys.argv[4:])
        return
    if command in ("submit", "state", "follow", "stop"):
        from . import jobs

        sys.exit(jobs.main(command))
    sys.exit(f"usage: {sys.argv[0]} agents|submit|state|follow|stop|driver")


if __name__ == "__main__":
    main()
