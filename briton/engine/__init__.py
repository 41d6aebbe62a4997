"""What every executor shares: types, the Executor protocol, validation; and the Engine, which turns one stream of
chunks into one stream a request.
"""
