"""A folder of one's own with runs, networks, pictures and data, as the page and the command line show it.

Nothing here knows of a browser, and nothing in training knows of this.
"""
