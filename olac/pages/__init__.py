"""Reports of programs for people: pages of HTML, their drawings, and records of what was measured."""
