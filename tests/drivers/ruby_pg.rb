# ruby-pg: statements with names of the user's own, DEALLOCATE by SQL, COPY, notifications, and a process ID that stands for the session.
require 'pg'

def check(holds, what) = holds || raise(what)

def state
  yield
  'no error'
rescue PG::Error => error
  error.result.error_field(PG::PG_DIAG_SQLSTATE)
end

db = PG.connect
Integer(ENV['ROUNDS']).times do |turn|
  db.prepare('plus', 'SELECT $1::int + 1 AS n')
  5.times { |n| check(db.exec_prepared('plus', [n])[0]['n'].to_i == n + 1, 'a prepared statement') }
  check(db.exec('EXECUTE plus(41)')[0]['n'] == '42', 'EXECUTE')
  check(db.exec('SELECT name FROM pg_prepared_statements').map { |row| row['name'] } == ['plus'], 'its own names')
  db.transaction do
    check(db.exec('EXPLAIN (COSTS OFF) EXECUTE plus(1)').ntuples >= 1, 'EXPLAIN EXECUTE')
    db.exec('DEALLOCATE plus')
  end
  check(state { db.exec_prepared('plus', [1]) } == '26000', 'deallocated')
  db.exec('BEGIN')
  db.exec('CREATE TABLE ruby (a int)')
  db.copy_data('COPY ruby FROM STDIN') { 10.times { |n| db.put_copy_data("#{n}\n") } }
  check(db.exec('SELECT sum(a) FROM ruby')[0]['sum'] == '45', 'COPY')
  db.exec('ROLLBACK')
  check(db.exec('SELECT pg_backend_pid()')[0]['pg_backend_pid'].to_i == db.backend_pid, 'the process ID')
  db.exec('LISTEN ruby')
  db.exec("NOTIFY ruby, 'turn #{turn}'")
  heard = nil
  db.wait_for_notify(5) { |_, pid, payload| heard = [pid, payload] }
  check(heard == [db.backend_pid, "turn #{turn}"], "its own notification: #{heard}")
  db.exec('UNLISTEN *')
end
victim = PG.connect
check(db.exec_params('SELECT pg_terminate_backend($1)', [victim.backend_pid])[0]['pg_terminate_backend'] == 't', 'pg_terminate_backend')
check((victim.exec('SELECT 1') rescue 'ended') == 'ended', 'it is ended')
puts "ruby-pg #{PG::VERSION}: ok"
