"""The report: tables in, one self-contained page out (extra ``report``). Nothing calls it but the command line."""
