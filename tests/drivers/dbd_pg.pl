# DBD::Pg: prepares on the server under names of its own, and deallocates them by SQL.
use strict;
use warnings;
use DBI;

my $dbh = DBI->connect('dbi:Pg:', undef, undef, { RaiseError => 1, PrintError => 0, AutoCommit => 1 });
$dbh->{pg_server_prepare} = 1;
for my $turn (1 .. $ENV{ROUNDS}) {
    my $sth = $dbh->prepare('SELECT ?::int * 3');
    for my $n (1 .. 5) {
        $sth->execute($n);
        my ($got) = $sth->fetchrow_array;
        die "$got is not 3 * $n" unless $got == 3 * $n;
        $sth->finish;
    }
    undef $sth;
    $dbh->begin_work;
    eval { $dbh->do('SELECT 1/0') };
    die "1/0 gave an answer" unless $dbh->state eq '22012';
    $dbh->rollback;
    $dbh->begin_work;
    $dbh->do('CREATE TABLE dbd (a int)');
    $dbh->do('COPY dbd FROM STDIN');
    $dbh->pg_putcopydata("$_\n") for 1 .. 10;
    $dbh->pg_putcopyend;
    my ($sum) = $dbh->selectrow_array('SELECT sum(a) FROM dbd');
    die "$sum" unless $sum == 55;
    $dbh->rollback;
}
print "DBD::Pg $DBD::Pg::VERSION: ok\n";
