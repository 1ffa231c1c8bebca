<?php
// PHP's PDO: prepares on the server under names of its own, deallocates them by SQL, and asks for lastval() behind an INSERT.
$db = new PDO(sprintf('pgsql:host=%s;port=%s;dbname=%s', getenv('PGHOST'), getenv('PGPORT'), getenv('PGDATABASE')),
    getenv('PGUSER'), getenv('PGPASSWORD'), [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);

function check($holds, $what) {
    if (!$holds) throw new Exception($what);
}

function state($action) {
    try { $action(); return 'no error'; } catch (PDOException $error) { return $error->getCode(); }
}

$db->exec("DROP TABLE IF EXISTS pdo; CREATE TABLE pdo (id serial, a int)");
for ($turn = 0; $turn < (int) getenv('ROUNDS'); $turn++) {
    $select = $db->prepare('SELECT ?::int * 3 AS n');
    for ($n = 0; $n < 5; $n++) {
        $select->execute([$n]);
        check($select->fetchColumn() == 3 * $n, 'a parameter');
    }
    $db->beginTransaction();
    $insert = $db->prepare('INSERT INTO pdo (a) VALUES (:a)');
    $insert->execute(['a' => $turn]);
    $last = $db->lastInsertId();
    check($last == $db->query("SELECT max(id) FROM pdo WHERE a = $turn")->fetchColumn(), 'lastInsertId in a transaction');
    check($db->lastInsertId('pdo_id_seq') == $last, 'lastInsertId of a sequence');
    unset($insert);
    check(state(fn() => $db->query('SELECT 1/0')) == '22012', 'an error');
    $db->rollBack();
    // Outside of a transaction it is another one, in which the value may be known or not: never another's.
    $db->prepare('INSERT INTO pdo (a) VALUES (?)')->execute([1000 + $turn]);
    $own = $db->query('SELECT max(id) FROM pdo WHERE a = ' . (1000 + $turn))->fetchColumn();
    $last = null;
    $state = state(function () use ($db, &$last) { $last = $db->lastInsertId(); });
    check($state == 'no error' && $last == $own || $state == '55000', "lastInsertId: $state, $last and not $own");
    unset($select);
}
echo 'PDO ' . phpversion('pdo_pgsql') . ": ok\n";
