"""Where questions about real pictures come from: public training sets and manifests of one's own.

One adapter per set reads the schema that its authors publish, from local files, row by row: memory does not
grow with the set. A row that cannot be used becomes a :class:`models.vlir.sources.base.Fault`, never an
exception, and costs no other row.
"""
