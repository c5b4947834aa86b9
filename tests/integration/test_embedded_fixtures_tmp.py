import psycopg, redis, time, pytest
@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("st", ["wal_log","file_copy"])
def test_db(postgres_url, i, st):
    c=psycopg.connect(postgres_url, autocommit=True)
    t=time.perf_counter(); c.execute(f"create database x{i} template template0 strategy {st}"); a=time.perf_counter()-t
    t=time.perf_counter(); c.execute(f"drop database x{i} with (force)"); b=time.perf_counter()-t
    c.close()
    print(f"{st} create {a*1000:.0f} drop {b*1000:.0f}")
