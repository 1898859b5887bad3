"""What `training.report` is made of: runs read and grouped, tables, figures, pages.

Published numbers are in `published` and nowhere else; everything measured is read from the files of
runs. The two meet only in rows that say which of the two they are.
"""
