from faults import *
def test_a(rigged):
    r=rigged(Cut(after=300000))
    d=r.download(); print(d, r.partials, r.asked_bytes(), r.server._seen)
    m=r.start()
    d=r.download(); print(d, r.partials, r.asked_bytes(m))
    assert 0
