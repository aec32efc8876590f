"""The movie catalog: three services over real HTTP, and a gateway in the one that depends on the others.

`catalog.py` is the one to read: it is what a user of the library writes. `client.py` says how HTTP answers are sorted,
`faults.py` how a service is made to misbehave, `processes.py` how the three are run together.
"""
