"""
Runs the documentation as a reader would: files are written, commands are typed.

What a fenced block does is said by its language and its first line:

``python`` beginning with ``# tickets/handlers.py``
    is that file; ``# helpdesk/settings.py (at the end)`` is added to it. It must be
    good for an import, and for ``manage.py check`` where the page does not run it.
other ``python``
    runs in the Python of the page, a ``manage.py shell``, and prints nothing.
``pycon``
    is typed into that Python, and what it prints is compared.
``console``
    is typed into the page's terminal: lines with ``$``, then what they print. Where
    nothing is printed on the page, nothing is compared but the exit code. A command
    may fail where the page shows its error, or asks for its exit code by ``echo $?``.
``html`` beginning with ``<!-- tickets/templates/page.html -->``, ``text tickets.csv``
    are that file.
``json``, ``toml``
    must be well-formed.

Each page has a Django project of its own: the one that the tutorial has made by the
time its tables exist. ``<!-- a new project -->`` begins another one. The tutorial
itself begins in an empty folder. A block of Python after a change of files sees those
files: the shell is started anew, as a reader would have to.

Where the page has ``...``, anything may be printed. Ids, addresses, times, counts of
tests and the place of the project differ from run to run and count as equal; the page
may have ``... passed`` and ``... seconds`` for them.
"""
