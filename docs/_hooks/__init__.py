"""What the site's build needs beside the pages: mkdocs calls `pages`; `command_line` makes one of them."""
